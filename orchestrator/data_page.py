"""The page of `gavel data`: one self-contained file; the frame is `evaluation.page`'s."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation.page import COLOURS, Chart, label, new_figure, render_page, svg
from orchestrator.data_summary import PARTS, QUANTILES, TEXTS, DataSummary
from orchestrator.disk import atomic_writer

# More reasons than evaluation.page has colours.
_REASON_COLOURS = (*COLOURS, "#999999", "#8c564b", "#bcbd22", "#000000")


def write_page(summary: DataSummary, name: str, file: Path) -> None:
    page = render_page(
        Path(__file__).with_name("data_page.html.j2"),
        name=name,
        summary=summary,
        reasons=summary.reasons(),
        parts=PARTS,
        texts=TEXTS,
        quantiles=list(QUANTILES),
        charts=list(_charts(summary)),
    )
    with atomic_writer(file) as opened:
        opened.write(page)


def _charts(summary: DataSummary) -> Iterator[Chart]:
    if summary.reports:
        fates = {
            name: {"kept": each.kept}
            | {why: each.reasons().get(why, 0) for why in summary.reasons()}
            for name, each in summary.reports.items()
        }
        yield Chart("Rows", "of each source, by what became of them", _bars(fates, "rows"))
    if summary.parts:
        yield Chart(
            "Parts", "pairs of each source, by part of the run", _bars(summary.parts, "parts")
        )
    for number, source in enumerate(summary.lengths.of):
        yield _length_chart(summary, source, f"lengths-{number}")


def _bars(counts: Mapping[str, Mapping[str, int]], salt: str) -> str:
    """A bar for each source, of one piece for each name."""
    figure, axes = new_figure(height=1.4 + 0.3 * len(counts))
    names = list(dict.fromkeys(name for each in counts.values() for name in each))
    places: Sequence[int] = range(len(counts))
    left = np.zeros(len(counts))
    for name, colour in zip(names, _REASON_COLOURS, strict=False):
        widths = np.array([each.get(name, 0) for each in counts.values()])
        axes.barh(places, widths, left=left, color=colour, label=name, height=0.6)
        left += widths
    axes.set_yticks(places, [label(name) for name in counts])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.45, -0.2))
    return svg(figure, salt)


def _length_chart(summary: DataSummary, source: str, salt: str) -> Chart:
    figure, axes = new_figure()
    texts = summary.lengths.of[source]
    longest = max(int(each.max()) for each in texts.values())
    edges = np.geomspace(1, max(2, longest), 40)
    for (name, lengths), colour in zip(texts.items(), COLOURS, strict=False):
        counts, _ = np.histogram(np.maximum(lengths, 1), edges)
        axes.stairs(counts, edges, color=colour, label=name, linewidth=1.6)
    axes.set_xscale("log")
    axes.set_xlabel(summary.lengths.unit)
    axes.set_ylabel("pairs")
    axes.legend(frameon=False, fontsize=8, loc="best")
    caption = f"the chosen answer is longer in {summary.lengths.chosen_longer(source):.1%}"
    return Chart(f"Length: {source}", caption, svg(figure, salt))
