"""What a synthesis came to, for people: the table at its end and the plots of the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from evaluation.page import COLOURS, INK, Chart, new_figure, svg
from judging.display import printable
from synthesis.spending import teacher_table

SUMMARY = "summary.json"
_ROOM = 0.3  # for words in a bar


def synthesis_tables(summary: Mapping[str, Any]) -> Group:
    """Keep rates by source and pass, then reasons, then what teachers were paid."""
    return Group(_pairs_table(summary), "", _teachers_table(summary["teachers"]))


def _pairs_table(summary: Mapping[str, Any]) -> Table:
    table = _table("synthesized", "asked", "kept", "rate")
    for row in summary["passes"]:
        name = f"{row['source'] or '(no source)'}, pass {row['pass']}"
        numbers = (f"{row['asked']:,}", f"{row['kept']:,}", f"{row['keep_rate']:.1%}")
        table.add_row(Text(printable(name)), *numbers)
    asked, kept = summary["asked"], summary["kept"]
    table.add_row("all", f"{asked:,}", f"{kept:,}", f"{kept / asked:.1%}" if asked else "")
    rows = {
        **{f"answers rejected: {why}": count for why, count in summary["rejections"].items()},
        "pairs failed": summary["failed"],
        "pairs unasked, or not to their end": summary["unasked"],
        "answers paid for whose pairs are not decided": summary["undecided_answers"],
    }
    for name, count in rows.items():
        if count:
            table.add_row(name, f"{count:,}", "", "")
    return table


def _teachers_table(teachers: Sequence[Mapping[str, Any]]) -> Table:
    names, rows = teacher_table(teachers)
    table = _table(*names)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in names:
        is_text = name in ("synthesized", "teacher", "model")
        table.add_column(name, justify="left" if is_text else "right", overflow="fold")
    return table


def synthesized(run_path: Path) -> dict[int, Path]:
    """The summaries of the phases of synthesis that have ended, by phase."""
    found = {path.parent.name: path for path in run_path.glob(f"synthesis/*/{SUMMARY}")}
    return {int(name): found[name] for name in sorted(found) if name.isdecimal()}


def synthesis_charts(run_path: Path) -> Iterator[Chart]:
    """Of each phase of synthesis that has ended."""
    for phase, path in synthesized(run_path).items():
        with suppress(OSError, ValueError, LookupError, TypeError):  # of a file that was spoilt
            yield _chart(phase, json.loads(path.read_text("utf-8")))


def _chart(phase: int, summary: Mapping[str, Any]) -> Chart:
    figure, axes = new_figure()
    rows = summary["passes"]
    places = range(len(rows))
    axes.barh(places, [row["keep_rate"] for row in rows], color=COLOURS[0], height=0.6)
    for place, row in zip(places, rows, strict=True):
        told, rate = f"{row['kept']:,} of {row['asked']:,}", row["keep_rate"]
        at, colour = (0.01, "white") if rate > _ROOM else (rate + 0.01, INK)
        axes.text(at, place, told, va="center", color=colour, fontsize=8, weight="bold")
    names = [f"{printable(row['source'])[:24] or 'pairs'}, pass {row['pass']}" for row in rows]
    axes.set_yticks(places, names, fontsize=8, color=INK)
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    reasons = ", ".join(f"{why} {count:,}" for why, count in summary["rejections"].items())
    caption = (
        f"share of the pairs asked about in a pass of which a trace was kept; answers rejected "
        f"for: {reasons or 'nothing'}"
    )
    title = f"Synthesized traces (phase {phase + 1})"
    return Chart(title, caption, svg(figure, f"synthesis {phase}"))
