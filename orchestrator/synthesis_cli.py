"""`gavel synthesis`: what teachers were asked in a run, what came of it, and what was refused."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.urls import place_of
from judging.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

    from judging.records import PreferencePair
    from orchestrator.rundir import RunDirectory
    from synthesis.ledger import Ledger
    from synthesis.records import Attempt, Outcome
    from synthesis.settings import Price

_HELP = """\
Shows a run's phase of synthesis: keep rates, why answers were rejected, what teachers were paid,
some of the rejected answers, and some whose pairs are not decided. Of a run that is still asking,
gavel status tells.

  gavel synthesis                        # of the run begun last
  gavel synthesis RUN --rejected 10 --why mentions_verdict --pairs"""
_TEXT_CHARS = 1500  # of an answer that is shown
_PAIR_CHARS = 500  # of a pair's texts
_BECAME = {
    "kept": "which was kept by another answer",
    "rejected": "which was rejected: no pass had enough right answers",
    "failed": "which failed: no teacher answered",
    "unasked": "which is unasked",
}


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
    synthesis.add_argument(
        "--phase", type=int, help="number of the phase, from 1 (default: the last of synthesis)"
    )
    synthesis.add_argument(
        "--rejected", type=int, default=3, metavar="N", help="answers shown of each kind"
    )
    synthesis.add_argument("--why", metavar="REASON", help="only answers rejected for it")
    synthesis.add_argument(
        "--pairs", action="store_true", help="read the run's data, and show what was judged"
    )
    synthesis.add_argument("--json", action="store_true", help="print the figures as JSON")


def run_command(options: argparse.Namespace) -> int:
    """Does one command; returns the exit status. Raises ConfigurationError and DataError."""
    from orchestrator.console import output_console
    from orchestrator.status import find_run
    from orchestrator.synthesis_report import synthesis_tables
    from orchestrator.synthesize import LEDGER, summary_of
    from synthesis.dataset import CARD
    from synthesis.ledger import Ledger
    from synthesis.tally import Tally

    _check(options)
    run = find_run(options.run, options.dir)
    folder = _phase_folder(run, options.phase)
    with Ledger(folder / LEDGER) as ledger:
        prices = _prices(run, int(folder.name))
        summary = summary_of(Tally.of(ledger.outcomes()), ledger, prices)
        if options.json:
            print(json.dumps(summary, indent=2))
            return 0
        pairs = _pairs(run) if options.pairs else {}
        console = output_console()
        console.print(synthesis_tables(summary))
        for table in islice(_rejected(ledger, options.why, pairs), options.rejected):
            console.print()
            console.print(table)
        for part in _undecided(ledger, options):
            console.print()
            console.print(part, markup=False, highlight=False)
    dataset = folder / "dataset"
    told = f"the data set: {dataset}"
    if not (dataset / CARD).exists():
        told = (
            f"the phase has not ended, and has written no data set: gavel run --resume {run.path}"
        )
    console.print(f"\n{told}", markup=False, soft_wrap=True)
    return 0


def _check(options: argparse.Namespace) -> None:
    from judging.verification import Rejection

    if options.rejected < 0:
        raise ConfigurationError(f"--rejected {options.rejected}: give a number of answers, or 0")
    if options.why is not None and options.why not in set(Rejection):
        raise ConfigurationError(
            f"--why {options.why}: no answer is rejected for that; the reasons are "
            f"{', '.join(Rejection)}"
        )


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


def _prices(run: RunDirectory, index: int) -> Mapping[str, Price] | None:
    from orchestrator.config_loading import config_from_tree

    with suppress(ConfigurationError, LookupError):  # of another version, say
        phase = config_from_tree(run.read_config()).phases[index]
        return phase.settings.prices if phase.kind == "synthesize" else None


def _pairs(run: RunDirectory) -> Mapping[str, PreferencePair]:
    from orchestrator.config_loading import config_from_tree
    from orchestrator.pairs import load_pairs

    split = load_pairs(config_from_tree(run.read_config())).split
    return {pair.uid: pair for pair in (*split.distill, *split.reinforce)}


def _rejected(
    ledger: Ledger, why: str | None, pairs: Mapping[str, PreferencePair]
) -> Iterator[Table]:
    """Each rejected answer, with its pair and the reasons."""
    for outcome in ledger.outcomes():
        for attempt in outcome.attempts:
            if attempt.rejections and (why is None or why in attempt.rejections):
                yield _shown(
                    {
                        "rejected for": ", ".join(attempt.rejections),
                        **_about(outcome, attempt, pairs.get(outcome.pair_uid)),
                        "answer": _cut(ledger.text_of(attempt.key), _TEXT_CHARS),
                    }
                )


def _about(outcome: Outcome, attempt: Attempt, pair: PreferencePair | None) -> dict[str, str]:
    source = outcome.source or "no source"
    is_first = attempt.order == "chosen_first"
    told = {
        "pair": f"{outcome.pair_uid} ({source}), {_BECAME[outcome.state]}",
        "asked": f"teacher {attempt.teacher}, pass {attempt.number}, sample {attempt.sample + 1}, "
        f"{attempt.order}",
    }
    if pair is not None:
        answers = (pair.chosen, pair.rejected) if is_first else (pair.rejected, pair.chosen)
        texts = (pair.conversation[-1].content, *answers)
        names = ("question", "answer A", "answer B")
        told |= {name: _cut(text, _PAIR_CHARS) for name, text in zip(names, texts, strict=True)}
    return told | {"right verdict": "A" if is_first else "B"}


def _undecided(ledger: Ledger, options: argparse.Namespace) -> Iterator[Table | str]:
    """A title that counts the answers of which no pair's outcome knows, and some of them."""
    count = sum(ledger.undecided_counts())
    if not count:
        return
    title = f"answers whose pairs are not decided, neither kept nor rejected: {count:,}"
    yield title if options.why is None else f"{title} (shown without --why)"
    if options.why is None:
        for answer in islice(ledger.undecided(), options.rejected):
            from_cache = ", from the cache" if answer.is_from_cache else ""
            asked = f"teacher {answer.teacher} ({answer.model}){from_cache}"
            yield _shown({"asked": asked, "answer": _cut(answer.text, _TEXT_CHARS)})


def _cut(text: str, chars: int) -> str:
    return text if len(text) <= chars else f"{text[:chars]} ... ({len(text):,} characters)"


def _shown(fields: Mapping[str, str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from judging.display import printable

    table = Table.grid(padding=(0, 2))
    for name, text in fields.items():
        table.add_row(Text(name, style="bold"), Text(printable(text)))
    return table
