"""`gavel workers`: more rollout workers for a running run."""

from __future__ import annotations

import argparse
from typing import Any

from judging.errors import ConfigurationError
from orchestrator.asking import ask, run_arguments, wait_arguments


def add_parser(commands: Any) -> None:
    workers = commands.add_parser(
        "workers",
        help="add rollout workers to a running run",
        description="A run that is resumed has as many as its configuration says.",
        allow_abbrev=False,
    )
    verbs = workers.add_subparsers(dest="verb", required=True, metavar="VERB")
    add = verbs.add_parser(
        "add",
        parents=[run_arguments(), wait_arguments()],
        help="start workers that join when they hold the current weights",
    )
    add.add_argument("--count", type=int, default=1, help="how many (default: 1)")


def run_command(options: argparse.Namespace) -> int:
    """Does one command; returns the exit status. Raises as `ask`."""
    if options.count < 1:
        raise ConfigurationError(f"--count {options.count}: add 1 worker at least")
    print(ask(options, "workers", "rollout workers", {"count": options.count}))
    return 0
