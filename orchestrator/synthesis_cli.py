"""`gavel synthesis`: what teachers were asked in a run, what came of it, and what was refused."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.urls import place_of
from judging.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

    from orchestrator.rundir import RunDirectory
    from synthesis.ledger import Ledger
    from synthesis.records import Outcome

_HELP = """\
Shows a run's phase of synthesis: keep rates, why answers were rejected, what teachers were paid,
and some of the rejected answers. Of a run that is still asking, gavel status tells.

  gavel synthesis                        # of the run begun last
  gavel synthesis RUN --rejected 10 --why mentions_verdict"""
_TEXT_CHARS = 1500  # of an answer that is shown


def add_parser(commands: Any) -> None:
    synthesis = commands.add_parser(
        "synthesis",
        help="show what teachers wrote in a run, and why it was kept or not",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    synthesis.add_argument(
        "run", metavar="RUN", nargs="?", help="id or directory (default: the one begun last)"
    )
    synthesis.add_argument("--dir", type=place_of, default=Path("runs"), help="where the runs are")
    synthesis.add_argument("--phase", type=int, help="number of the phase (default: the last)")
    synthesis.add_argument("--rejected", type=int, default=3, metavar="N", help="answers shown")
    synthesis.add_argument("--why", metavar="REASON", help="only answers rejected for it")
    synthesis.add_argument("--json", action="store_true", help="print the figures as JSON")


def run_command(options: argparse.Namespace) -> int:
    """Does one command; returns the exit status. Raises ConfigurationError and DataError."""
    from orchestrator.console import output_console
    from orchestrator.status import find_run
    from orchestrator.synthesize import LEDGER, summary_of
    from synthesis.ledger import Ledger
    from synthesis.tally import Tally

    folder = _phase_folder(find_run(options.run, options.dir), options.phase)
    with Ledger(folder / LEDGER) as ledger:
        summary = summary_of(Tally.of(ledger.outcomes()), ledger)
        if options.json:
            print(json.dumps(summary, indent=2))
            return 0
        from orchestrator.synthesis_report import synthesis_table

        console = output_console()
        console.print(synthesis_table(summary))
        for outcome, table in islice(_rejected(ledger, options.why), options.rejected):
            console.print()
            console.print(f"{outcome.pair_uid} ({outcome.source}): {outcome.state}", markup=False)
            console.print(table)
        console.print(f"\nthe data set: {folder / 'dataset'}", markup=False, soft_wrap=True)
    return 0


def _phase_folder(run: RunDirectory, phase: int | None) -> Path:
    from orchestrator.synthesize import LEDGER

    found = sorted(run.path.glob(f"synthesis/*/{LEDGER}"), key=lambda path: int(path.parent.name))
    numbers = [int(path.parent.name) + 1 for path in found]
    if not found or (phase is not None and phase not in numbers):
        there = f"; phases with one: {', '.join(map(str, numbers))}" if numbers else ""
        raise ConfigurationError(
            f"run {run.run_id} has no synthesis{'' if phase is None else f' in phase {phase}'}"
            f"{there}: name another run, see gavel status"
        )
    return found[-1 if phase is None else numbers.index(phase)].parent


def _rejected(ledger: Ledger, why: str | None) -> Iterator[tuple[Outcome, Table]]:
    """Pairs with rejected answers, each with these."""
    from rich.table import Table
    from rich.text import Text

    from judging.display import printable

    for outcome in ledger.outcomes():
        shown = [
            attempt
            for attempt in outcome.attempts
            if attempt.rejections and (why is None or why in attempt.rejections)
        ]
        if not shown:
            continue
        table = Table("pass", "teacher", "rejected for", "answer", show_lines=True)
        for attempt in shown:
            text = printable(ledger.text_of(attempt.key))[:_TEXT_CHARS]
            reasons = ", ".join(attempt.rejections)
            table.add_row(f"{attempt.number}", Text(attempt.teacher), reasons, Text(text))
        yield outcome, table
