"""`gavel rewards`: see and change the rewards of a running run, and check one of your own."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from judging.errors import ConfigurationError
from orchestrator.asking import ask, journal_of, run_arguments, wait_arguments
from orchestrator.console import output_console, printable
from orchestrator.journal import RunJournal
from rewards.attach import make_backend
from rewards.contract import Finding, check_contract, read_samples, sample_requests
from rewards.protocol import RewardRequest
from rewards.settings import RewardUse, parse_reward_use


def add_parser(commands: Any) -> None:
    rewards = commands.add_parser(
        "rewards",
        help="list, attach, detach or weigh the rewards of a running run; check one of your own",
        description="Changes take effect at the run's next step.",
        allow_abbrev=False,
    )
    verbs = rewards.add_subparsers(dest="verb", required=True, metavar="VERB")
    of_run, waits = run_arguments(), wait_arguments()
    verbs.add_parser("list", parents=[of_run], help="show the mix as it stands")
    attach = verbs.add_parser("attach", parents=[of_run, waits], help="add a reward to the mix")
    attach.add_argument("name", metavar="NAME", help="its name in the mix and the metrics")
    attach.add_argument("uses", metavar="USES", help="as in the configuration, e.g. import:m:f")
    attach.add_argument("--weight", type=float, default=1.0)
    attach.add_argument("--shadow", action="store_true", help="record its scores only")
    detach = verbs.add_parser("detach", parents=[of_run, waits], help="take a reward away")
    detach.add_argument("name", metavar="NAME")
    weight = verbs.add_parser("weight", parents=[of_run, waits], help="set a reward's weight")
    weight.add_argument("name", metavar="NAME")
    weight.add_argument("weight", metavar="WEIGHT", type=float)
    check = verbs.add_parser("check", help="check a reward of your own against the contract")
    check.add_argument("uses", metavar="USES", help="as in the configuration")
    check.add_argument(
        "--samples", type=Path, metavar="FILE", help="requests as JSON Lines; default: made up ones"
    )
    check.add_argument(
        "--option", dest="options", action="append", default=[], metavar="NAME=VALUE"
    )
    check.add_argument(
        "--allow-host", action="append", default=[], metavar="HOST", help="of an https:// reward"
    )


def run_command(options: argparse.Namespace) -> int:
    """Does one command; returns the exit status. Raises as `ask`."""
    if options.verb == "check":
        return _check(options)
    match options.verb:
        case "list":
            with journal_of(options, must_run=False) as journal:
                _print(journal)
            return 0
        case "attach":
            arguments = {
                "uses": options.uses,
                "weight": options.weight,
                "mode": "shadow" if options.shadow else "train",
            }
            parse_reward_use(arguments)
        case "weight":
            arguments = {"weight": options.weight}
        case _:
            arguments = {}
    print(ask(options, "reward", options.name, arguments))
    return 0


def _print(journal: RunJournal) -> None:
    rewards = journal.rewards()
    if rewards is None:
        print("no phase of reinforcement has begun yet")
        return
    table = Table(title=f"Rewards of {journal.run_id}", title_justify="left")
    for column in ("name", "uses", "mode", "weight", "spec", "range"):
        table.add_column(column, overflow="fold")
    for reward in rewards:
        low, high = reward["range"]
        table.add_row(
            reward["name"],
            reward["uses"],
            reward["mode"],
            f"{reward['weight']:g}",
            reward["spec"],
            f"[{low:g}, {high:g}]",
        )
    output_console().print(table)


def _check(options: argparse.Namespace) -> int:
    """Runs the contract; returns 0 if the reward keeps it, else 1."""
    use = parse_reward_use({"uses": options.uses, "options": _options(options.options)})
    samples = read_samples(options.samples) if options.samples else sample_requests()
    findings = asyncio.run(_check_reward(use, options.allow_host, samples))
    table = Table(title=f"Contract of {options.uses}", title_justify="left")
    for column in ("check", "", "found"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        mark = Text("ok", style="green") if finding.ok else Text("fails", style="red")
        table.add_row(finding.check, mark, Text(printable(finding.detail)))
    output_console().print(table)
    return 0 if all(finding.ok for finding in findings) else 1


async def _check_reward(
    use: RewardUse, hosts: Sequence[str], samples: Sequence[RewardRequest]
) -> list[Finding]:
    with _cluster_of(use):
        return await check_contract(make_backend(use, hosts), samples)


@contextmanager
def _cluster_of(use: RewardUse) -> Iterator[None]:
    """Joins the Ray cluster at RAY_ADDRESS for a reward that is an actor there."""
    if not use.uses.startswith("ray:"):
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        raise ConfigurationError(
            f"reward {use.uses!r}: set RAY_ADDRESS to the cluster in which the actor lives"
        )
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` with YAML values, as overrides have."""
    import yaml

    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigurationError(f"--option {pair!r}: write NAME=VALUE")
        options[name] = yaml.safe_load(value)
    return options
