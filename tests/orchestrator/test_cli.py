"""The command line: dry runs of the shipped recipes, exit statuses, and what is imported."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType

import pytest

from judging.errors import ConfigurationError, InfrastructureError
from orchestrator.cli import main

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
HEAVY = ("torch", "ray", "vllm", "transformers", "deepspeed", "matplotlib", "tensorboard")
RATES = {  # of the paper: distillation, reinforcement
    "qwen-7b": (5e-6, 1e-6),
    "qwen-14b": (3e-6, 7e-7),
    "qwen-32b": (2e-6, 5e-7),
    "deepseek-7b": (None, 1e-6),
    "deepseek-14b": (None, 1e-6),
    "deepseek-32b": (None, 8e-7),
}


def gavel(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "orchestrator", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def told(*arguments):
    """(exit status, standard output, standard error), in this process."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            status = main([*map(str, arguments)])
        except SystemExit as ended:  # argparse's
            status = ended.code
    return status, output.getvalue(), errors.getvalue()


def dry_run(*arguments):
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert main(["run", *map(str, arguments), "--dry-run", "--json"]) == 0
    return json.loads(printed.getvalue())


@pytest.fixture
def driver(monkeypatch):
    """A stand-in for the driver, so that the command line is tested without starting Ray."""
    module = ModuleType("orchestrator.driver")
    module.calls = []
    module.outcome = 0

    def run(config):
        module.calls.append(config)
        if isinstance(module.outcome, BaseException):
            raise module.outcome
        return module.outcome

    module.run = run
    monkeypatch.setitem(sys.modules, "orchestrator.driver", module)
    monkeypatch.setattr("orchestrator.preflight.find_obstacles", lambda *_: [])
    monkeypatch.chdir(ROOT)
    return module


@pytest.mark.parametrize("name", RATES)
def test_each_recipe_resolves_to_the_papers_values(name):
    shown = dry_run(CONFIGS / "rm-r1" / f"{name}.yaml")
    config, (learners,) = (
        shown["config"],
        [actor for actor in shown["plan"]["actors"] if actor["role"] == "learner"],
    )
    distill_rate, reinforce_rate = RATES[name]
    phases = [next(iter(phase)) for phase in config["phases"]]
    reinforce = next(phase["reinforce"] for phase in config["phases"] if "reinforce" in phase)
    assert reinforce["optimizer"]["learning_rate"] == reinforce_rate
    assert (reinforce["group_size"], reinforce["kl_coef"], reinforce["clip_low"]) == (7, 1e-3, 0.2)
    assert (reinforce["prompts_per_step"], reinforce["mini_batch_prompts"]) == (1024, 128)
    assert (config["data"]["max_prompt_tokens"], config["rollout"]["max_new_tokens"]) == (
        4096,
        8192,
    )
    assert config["rollout"]["tensor_parallel"] == 4
    assert learners["memory"] is not None
    if distill_rate is None:
        assert phases == ["reinforce", "evaluate"]
        assert config["judge"]["template"] == "reasoning"
    else:
        assert phases == ["distill", "reinforce", "evaluate"]
        assert config["judge"]["template"] == "instruct"
        assert config["phases"][0]["distill"]["optimizer"]["learning_rate"] == distill_rate
        assert config["phases"][0]["distill"]["batch_size"] == 128
    assert shown["plan"]["gpus"] == {"7b": 8, "14b": 16, "32b": 32}[name.split("-")[1]]


def test_the_quickstart_resolves_and_runs_every_phase():
    shown = dry_run(CONFIGS / "quickstart.yaml")
    kinds = [phase["kind"] for phase in shown["plan"]["phases"]]
    assert kinds == ["evaluate", "distill", "evaluate", "reinforce", "evaluate"]
    assert shown["plan"]["host_memory_bytes"] < 8 * 2**30


def test_rmb_resolves_with_data_given_on_the_command_line(tmp_path):
    row = {
        "pair_uid": "1",
        "conversation_input": [{"role": "user", "content": "question", "language": "English"}],
        "chosen": {"llm_name": "a", "answer": "good"},
        "reject": {"llm_name": "b", "answer": "bad"},
        "category_path": "Pairwise_set/made/up",
    }
    rows = [
        row | {"conversation_input": [{"role": "user", "content": f"{i}", "language": "English"}]}
        for i in range(400)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    shown = dry_run(CONFIGS / "rmb.yaml", f"data.path={tmp_path}")
    parts = shown["plan"]["parts"]
    assert parts["reinforce"] + parts["heldout"] == 400


def test_a_dry_run_prints_configuration_and_plan_as_text():
    done = gavel("run", CONFIGS / "rm-r1" / "qwen-7b.yaml", "--dry-run")
    assert done.returncode == 0
    for part in (
        "learning_rate: 1.0e-06",
        "7,168 rollouts",
        "estimated from the name",
        "data.path",
    ):
        assert part in done.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["configs/none.yaml"], "there is no such file"),
        (["configs/quickstart.yaml", "rollout.wokers=2"], "did you mean rollout.workers"),
        (["configs/quickstart.yaml", "rollout"], "section.key=value"),
        (["configs/quickstart.yaml", "reinforce.mini_batch_prompts=48"], "prompts_per_step (128)"),
        (["configs/rm-r1/qwen-7b.yaml"], "data.path"),
    ],
)
def test_bad_input_ends_with_one_message_and_status_2(arguments, part, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["run", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("gavel: ")
    assert part in shown.err
    assert not shown.out


def test_bad_data_names_file_and_line_and_ends_with_status_2(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n{"prompt": \n')
    config = CONFIGS / "rmb.yaml"
    status, _, errors = told("run", config, f"data.path={path}", "--dry-run")
    assert status == 2
    assert "pairs.jsonl" in errors
    assert "2" in errors.partition("pairs.jsonl")[2]


def test_a_command_that_is_no_command_is_status_2():
    assert told("rnu")[0] == 2
    assert told()[0] == 2


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (0, 0),
        (1, 1),
        (ConfigurationError("bad"), 2),
        (InfrastructureError("lost"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_the_exit_status_tells_how_the_run_ended(driver, capsys, outcome, status):
    driver.outcome = outcome
    assert main(["run", "configs/quickstart.yaml"]) == status
    if isinstance(outcome, Exception):
        assert str(outcome) in capsys.readouterr().err


def test_the_driver_gets_the_configuration_with_an_id(driver):
    assert main(["run", "configs/quickstart.yaml", "run.seed=5"]) == 0
    (config,) = driver.calls
    assert config.run.seed == 5
    assert config.run.id.startswith("quickstart-")


def test_with_json_a_run_is_quiet_and_ends_with_its_summary(driver, capsys, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "summary.json").write_text('{"run_id": "r"}')
    arguments = ["run", "configs/quickstart.yaml", f"run.dir={tmp_path}", "run.id=r", "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {"run_id": "r"}
    assert driver.calls[0].output.progress == "quiet"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["run", "configs/quickstart.yaml", "--dry-run"]],
)
def test_help_and_dry_run_import_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from orchestrator.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'imported {loaded}' if loaded else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_help_names_the_commands_and_the_version_is_told():
    _, shown, _ = told("--help")
    assert all(command in shown for command in ("run", "status", "rewards", "workers"))
    assert told("--version")[1].startswith("gavel ")


def test_the_program_ends_with_its_status_whatever_threads_are_left():
    code = (
        "import atexit, threading, time\n"
        "from orchestrator import cli\n"
        "cli.main = lambda: print('done') or 3\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "atexit.register(print, 'cleaned up')\n"
        "cli.program()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (3, "done\ncleaned up\n")
