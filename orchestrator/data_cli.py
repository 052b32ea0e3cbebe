"""`gavel data`: what comes of a configuration's data, as tables, JSON and a page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judging.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from orchestrator.data_summary import DataSummary

CATEGORIES_SHOWN = 12  # of each source
_EXAMPLE_CHARS = 160
_HELP = """\
Reads, filters, mixes and splits the pairs of a configuration as a run does, and shows what came of
it: what each source lost to which filter, the parts, lengths, categories and examples.

  gavel data configs/rm-r1/data.yaml
  gavel data configs/rm-r1/data.yaml data.sources.code.limit=4000 --html mix.html

Lengths are in tokens if the tokenizer of model.path is on this machine, else in characters."""


def add_parser(commands: Any) -> None:
    data = commands.add_parser(
        "data",
        help="show what comes of a configuration's pairs",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    data.add_argument("config", metavar="CONFIG", type=Path, help="YAML file")
    data.add_argument("overrides", metavar="key=value", nargs="*", help="override of a key")
    data.add_argument("--json", action="store_true", help="print it as JSON")
    data.add_argument("--html", metavar="FILE", type=Path, help="write a page with plots too")


def run_command(options: argparse.Namespace) -> int:
    """Does one command; returns the exit status. Raises ConfigurationError and DataError."""
    from orchestrator.config_loading import load_config
    from orchestrator.data_summary import summarize
    from orchestrator.facts import absent_data

    config = load_config(options.config, options.overrides)
    if absent := absent_data(config):
        raise ConfigurationError(
            "\n".join(
                f"{key}: {path} is not on this machine: put it there, or set {key} to where it is"
                for key, path in absent.items()
            )
        )
    summary = summarize(config)
    if options.html is not None:
        from orchestrator.data_page import write_page

        write_page(summary, options.config.stem, options.html)
    if options.json:
        print(json.dumps(summary.tree(), indent=2, ensure_ascii=False))
    else:
        _print(summary)
    return 0


def _print(summary: DataSummary) -> None:
    from rich.text import Text

    from judging.display import printable
    from orchestrator.console import output_console

    console = output_console()
    for shown in _renderables(summary):
        console.print(shown)
        console.print()
    for note in summary.notes:
        console.print(Text(printable(note)), soft_wrap=True)


def _renderables(summary: DataSummary) -> Iterator[RenderableType]:
    if summary.reports:
        yield _source_table(summary)
    yield _part_table(summary)
    yield _length_table(summary)
    yield (
        f"One order shows {summary.chosen_first:.1%} of the pairs with the chosen answer first "
        "(by run.seed and pair)."
    )
    yield _category_table(summary)
    yield _example_table(summary)


def _source_table(summary: DataSummary) -> Table:
    reasons = summary.reasons()
    table = _table("read", ("rows", *reasons, "kept"))
    rows = {
        name: [each.rows, *(each.reasons().get(why, 0) for why in reasons), each.kept]
        for name, each in summary.reports.items()
    }
    _fill(table, rows)
    return table


def _part_table(summary: DataSummary) -> Table:
    columns = ["distill", "reinforce", "held out"]
    if summary.overlapping:
        columns.append("dropped: repeat evaluation")
    table = _table("parts", columns)
    names = list(dict.fromkeys([*summary.parts, *summary.overlapping]))
    rows: dict[str, list[int]] = {}
    for name in names:
        counts = summary.parts.get(name, {})
        rows[name] = [counts.get(part, 0) for part in ("distill", "reinforce", "heldout")]
        if summary.overlapping:
            rows[name].append(summary.overlapping.get(name, 0))
    _fill(table, rows)
    return table


def _length_table(summary: DataSummary) -> Table:
    from orchestrator.data_summary import QUANTILES, TEXTS

    lengths = summary.lengths
    table = _table(f"{lengths.unit} of {lengths.pairs:,} pairs", ("text", *QUANTILES, "is longer"))
    for source in lengths.of:
        for text in TEXTS:
            numbers = (f"{n:,}" for n in lengths.quantiles(source, text).values())
            is_chosen = text == "chosen"
            longer = f"{lengths.chosen_longer(source):.1%}" if is_chosen else ""
            name = _plain(source) if text == TEXTS[0] else ""
            table.add_row(name, text, *numbers, longer)
    return table


def _category_table(summary: DataSummary) -> Table:
    table = _table("categories", ("pairs",))
    for source, counts in summary.categories.items():
        for category, count in islice(counts.items(), CATEGORIES_SHOWN):
            table.add_row(_plain(f"{source}: {category or '(none)'}"), f"{count:,}")
        if (more := len(counts) - CATEGORIES_SHOWN) > 0:
            rest = sum(islice(counts.values(), CATEGORIES_SHOWN, None))
            table.add_row(_plain(f"{source}: {more} more"), f"{rest:,}")
    return table


def _example_table(summary: DataSummary) -> Table:
    from rich.table import Table

    table = Table("examples", "", box=None, pad_edge=False)
    for example in summary.examples:
        table.add_row(_plain(f"{example.source} {example.uid}"), _plain(_short(example.question)))
        table.add_row("  chosen", _plain(_short(example.chosen)))
        table.add_row("  rejected", _plain(_short(example.rejected)))
    return table


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EXAMPLE_CHARS else f"{line[: _EXAMPLE_CHARS - 3]}..."


def _table(title: str, columns: tuple[str, ...] | list[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(title, overflow="fold")
    for name in columns:
        table.add_column(name, justify="left" if name == "text" else "right")
    return table


def _fill(table: Table, rows: Mapping[str, list[int]]) -> None:
    for name, numbers in rows.items():
        table.add_row(_plain(name), *(f"{number:,}" for number in numbers))
    if len(rows) > 1:
        totals = (sum(column) for column in zip(*rows.values(), strict=True))
        table.add_row("all", *(f"{number:,}" for number in totals), style="bold")


def _plain(text: str) -> Any:
    """Untrusted text, which is no markup."""
    from rich.text import Text

    from judging.display import printable

    return Text(printable(text))
