"""What people do to a run: workers join it, SIGTERM ends it with a checkpoint to go on from, and
Ctrl-C at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(600)]
STEPS = 40


def command(runs: Path) -> list[str]:
    settings = (
        "run.id=asked",
        f"run.dir={runs}",
        "phases=[distill, reinforce]",
        "distill.max_steps=12",
        "data.generate.heldout_pairs=16",
        "data.generate.reinforce_pairs=600",
        f"reinforce.max_steps={STEPS}",
        "reinforce.prompts_per_step=8",
        "reinforce.mini_batch_prompts=4",
        "reinforce.max_staleness=1",  # the engines are ahead, and so is what is kept of their work
        "rollout.workers=1",
        "learner.ranks=1",
        "checkpoint.every_steps=null",
        "output.samples=0",
        "output.progress=lines",
        "rollout.worker=benchmarks.stand_in:StandInWorker",  # starts sooner than vLLM
    )
    return [sys.executable, "-m", "orchestrator", "run", "configs/quickstart.yaml", *settings]


def steps(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if row["phase"] == "reinforce" and "phase_index" in row]


def wait_until(is_reached, what: str, driver: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 300
    while not is_reached():
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"{what}: not within 300 s: {log.read_text()}"
        time.sleep(0.05)


def workers(runs: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", "workers", *arguments, "--dir", str(runs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_worker_joins_and_sigterm_leaves_a_checkpoint_to_go_on_from(tmp_path, request):
    run, log = tmp_path / "asked", tmp_path / "log"
    with log.open("w") as file:
        driver = subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=file, stderr=file)
    request.addfinalizer(driver.kill)
    wait_until(lambda: steps(run), "a step", driver, log)
    assert steps(run)[0]["engines"] == 1
    refused = workers(tmp_path, "add", "asked", "--count", "1000")
    assert refused.returncode == 2
    assert "more than the 64 that can be added at once" in refused.stderr
    added = workers(tmp_path, "add", "asked")
    assert added.returncode == 0, added.stderr
    assert "rollout worker 1 joins when there is room for it and it holds the" in added.stdout
    wait_until(lambda: steps(run)[-1]["engines"] == 2, "a step with 2 workers", driver, log)

    family = psutil.Process(driver.pid).children(recursive=True)
    for process in family:  # the store too, as `ray job stop` does to what descends from a driver
        if process.name() == "redis-server":
            process.send_signal(signal.SIGTERM)
    driver.send_signal(signal.SIGTERM)

    assert driver.wait(timeout=120) == 0, log.read_text()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    said, done = log.read_text(), len(steps(run))
    assert "SIGTERM: the run ends after this step" in said
    assert "stopped in order, between two steps" in said
    assert "redis-server ended" not in said
    assert 2 <= done < STEPS
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step-000012", f"step-{12 + done:06}"]
    assert json.loads((run / "summary.json").read_text())["status"] == "stopped"
    assert list((run / "open").iterdir())

    assert workers(tmp_path, "add", "asked").returncode == 2  # nobody drives it
    with log.open("w") as file:
        again = [*command(tmp_path), "--resume", "asked"]
        driver = subprocess.Popen(again, cwd=ROOT, stdout=file, stderr=file)
    request.addfinalizer(driver.kill)
    wait_until(lambda: len(steps(run)) > done, "a further step", driver, log)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=120) == 0, log.read_text()
    said = log.read_text()
    assert f"taking the run up in phase 2, after step {done}" in said
    assert "taking up" in said  # finished groups
    assert "replaying" not in said
    assert [row["step"] for row in steps(run)] == list(range(1, len(steps(run)) + 1))


def test_ctrl_c_leaves_no_process_behind(tmp_path: Path) -> None:
    """Of vLLM's neither, while it starts."""
    made = ("data.generate.heldout_pairs=16", "data.generate.reinforce_pairs=600")
    settings = (f"run.dir={tmp_path}", "run.id=cut", "rollout.workers=1", *made)
    driver = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "run", "configs/quickstart.yaml", *settings],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    family: set[psutil.Process] = set()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not any("EngineCore" in name(p) for p in family):
        family |= set(psutil.Process(driver.pid).children(recursive=True))
        time.sleep(0.5)
    family |= set(psutil.Process(driver.pid).children(recursive=True))
    assert any("EngineCore" in name(p) for p in family)
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.wait(timeout=90) == 130
    _, alive = psutil.wait_procs(list(family), timeout=20)
    assert not alive, [name(process) for process in alive]
    assert json.loads((tmp_path / "cut" / "summary.json").read_text())["status"] == "stopped"


def name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.NoSuchProcess:
        return ""
