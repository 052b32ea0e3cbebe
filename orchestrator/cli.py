"""The command line, `gavel`; `python -m orchestrator` is the same program.

Exit status: 0 done, or ended by SIGTERM in order; 2 bad input; 130 interrupted; 143 ended by
SIGTERM at once; 1 anything else. What Gavel raises on purpose is shown as its message alone.
Reading a configuration and planning start nothing and import neither torch nor Ray.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from judging.errors import GavelError, Stop

if TYPE_CHECKING:
    from orchestrator.config import RunConfig
    from orchestrator.facts import Facts
    from orchestrator.plan import Plan

INTERRUPTED = 130
_RUN_HELP = """\
Runs the phases of a configuration: distil, reinforce, evaluate.

  gavel run configs/quickstart.yaml
  gavel run configs/quickstart.yaml learner.ranks=2 reinforce.optimizer.learning_rate=5e-5
  gavel run configs/rm-r1/qwen-7b.yaml --dry-run
  gavel run configs/quickstart.yaml --resume

An override is a key's dotted name and a YAML value: data.limit=100, phases=[evaluate],
model.make=null. It wins over the file.

A run that did not finish goes on from what it committed if it is begun again under its id
(run.id=...), or with --resume, which takes run.id where it is set."""


# The other commands, by the module that adds its parser and does what it says.
_PARTS = {
    "data": "data_cli",
    "synthesis": "synthesis_cli",
    "status": "status_cli",
    "rewards": "rewards_cli",
    "workers": "workers_cli",
    "submit": "jobs_cli",
    "logs": "jobs_cli",
    "stop": "jobs_cli",
    "cluster": "cluster_cli",
    "doctor": "doctor_cli",
    "eval": "eval_cli",
    "judge": "judge_cli",
    "serve": "serve_cli",
}


def program() -> NoReturn:
    """`gavel`: `main`, whose status it ends with, whatever threads of libraries do meanwhile.

    One that still waits in native code, as Ray's do for a cluster that does not answer, can abort
    an interpreter that is being taken down.
    """
    status: Any = 1
    try:
        status = main()
    except SystemExit as end:
        status = end.code
    except BaseException:  # a mistake in the program; shown as Python does
        traceback.print_exc()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, as by `gavel status | head`
            stream.flush()
    os._exit(status or 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; answers its exit status."""
    from orchestrator.eval_cli import with_verb

    options = _parse(with_verb(sys.argv[1:] if arguments is None else arguments))
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where `import:` rewards may be
    try:
        if options.command == "run":
            return _run(options)
        return _part(_PARTS[options.command]).run_command(options)
    except GavelError as error:
        lines = f"gavel: {error}".splitlines()
        print("\n".join(error.place + line for line in lines), file=sys.stderr)
        return error.exit_code
    except OSError as error:  # of the machine: a disk that is full, a folder without access
        print(f"gavel: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gavel: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options may stand before, between and after overrides, which argparse alone refuses."""
    parser = _parser()
    options, others = parser.parse_known_args(arguments)
    overrides = [other for other in others if "=" in other and not other.startswith("-")]
    takes_overrides = hasattr(options, "overrides")
    if not takes_overrides or len(overrides) < len(others):
        return parser.parse_args(arguments)  # to be refused in argparse's own words
    options.overrides = [*options.overrides, *overrides]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gavel",
        description="Trains reasoning reward models: judges that write a rubric or a solution, "
        "weigh two answers and rule [[A]] or [[B]].",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gavel {version('gavel')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="run a configuration",
        description=_RUN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    run.add_argument("config", metavar="CONFIG", type=Path, help="YAML file")
    run.add_argument("overrides", metavar="key=value", nargs="*", help="override of a key")
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration and the plan, and start nothing",
    )
    run.add_argument(
        "--json",
        action="store_true",
        help="with --dry-run: print both as JSON; else: no progress, and summary.json at the end",
    )

    run.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="go on with the run of this id (default: that of run.id, else the one begun last)",
    )

    for name in dict.fromkeys(_PARTS.values()):
        _part(name).add_parser(commands)
    return parser


def _part(name: str) -> Any:
    return import_module(f"orchestrator.{name}")


def _run(options: argparse.Namespace) -> int:
    from orchestrator.config_loading import load_config, new_run_id, with_run_id
    from orchestrator.facts import gather_facts
    from orchestrator.plan import make_plan
    from orchestrator.preflight import check_inputs, check_obstacles, check_store

    quiet = ["output.progress=quiet"] if options.json else []
    overrides, resumed = list(options.overrides), options.resume
    if resumed and "=" in resumed:  # `--resume key=value`: an override, and no run is named
        overrides, resumed = [*overrides, resumed], ""
    config = load_config(options.config, [*overrides, *quiet])
    if resumed is not None:
        from orchestrator.resume import run_to_resume

        config = with_run_id(config, run_to_resume(config, resumed))
    facts = gather_facts(config)
    check_inputs(config, facts)
    plan = make_plan(config, facts)
    if options.dry_run:
        _print_dry_run(config, plan, facts, as_json=options.json)
        return 0
    check_obstacles(config, plan, facts)
    check_store(config)

    from orchestrator.driver import run

    config = with_run_id(config, config.run.id or new_run_id(options.config.stem, datetime.now()))
    try:
        status = run(config)
    except Stop as stop:
        if options.json and stop.exit_code == 0:
            _print_summary(config)
        raise
    if options.json:
        _print_summary(config)
    return status


def _print_summary(config: RunConfig) -> None:
    from orchestrator.runs import working_folder

    summary = working_folder(config.run.dir, str(config.run.id)) / "summary.json"
    print(summary.read_text("utf-8"))


def _print_dry_run(config: RunConfig, plan: Plan, facts: Facts, *, as_json: bool) -> None:
    from orchestrator.config_loading import config_tree, dump_config
    from orchestrator.plan import plan_tree, render_plan
    from orchestrator.preflight import find_obstacles

    obstacles = find_obstacles(config, plan, facts)
    if as_json:
        tree = {"config": config_tree(config), "plan": plan_tree(plan), "obstacles": obstacles}
        print(json.dumps(tree, indent=2, ensure_ascii=False))
        return
    print(dump_config(config))
    print(render_plan(plan))
    if obstacles:
        print("This machine cannot run it yet")
        print("\n".join(f"  - {obstacle}" for obstacle in obstacles))
