"""An evaluation on one self-contained page.

Owns the page's records, its parts and its plots. The records are plain, so that any benchmark's
aggregation can fill them; nothing is computed here. Text of a model or a benchmark is untrusted:
the frame (`evaluation.page`) escapes it and lets nothing run or load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.flips import Flip
from evaluation.items import Benchmark
from evaluation.page import COLOURS, INK, SOFT, Chart, label, new_figure, render_page, svg
from evaluation.published import Disagreement, PublishedTable, disagreements, published_for
from evaluation.statistics import CurvePoint, Estimate, JudgeStatistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES: Mapping[Benchmark, str] = {
    "rewardbench": "RewardBench",
    "rewardbench2": "RewardBench 2",
    "rm-bench": "RM-Bench",
    "rmb": "RMB",
    "judgebench": "JudgeBench",
}
# Of the table of judges: the fields of JudgeStatistics, and what heads their columns.
_MEASURES: Mapping[str, str] = {
    "accuracy": "accuracy",
    "consistent_accuracy": "right in both",
    "flip_rate": "flips",
    "first_position_rate": "says first",
    "length_bias": "says longer",
    "chosen_longer": "gold longer",
    "parseable": "parseable",
    "mean_tokens": "tokens",
}
_CHANCE = {"color": SOFT, "linewidth": 1, "linestyle": (0, (4, 3))}


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    estimate: Estimate | None


@dataclass(frozen=True, slots=True)
class Table:
    """Shares of a benchmark: its total, sections or subsets."""

    title: str
    caption: str
    rows: tuple[Row, ...]
    chance: float | None = 0.5  # what a coin scores; None: it differs from row to row


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A matrix of shares, as RM-Bench's styles of chosen (rows) and rejected answers (columns)."""

    title: str
    caption: str
    row_title: str
    column_title: str
    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    model: str
    facts: tuple[tuple[str, str], ...]  # protocol, votes, seed, what was left out, versions ...
    judges: Mapping[str, JudgeStatistics]  # by benchmark, or another part of the evaluation
    tables: tuple[Table, ...]
    heat_maps: tuple[HeatMap, ...] = ()
    curves: Mapping[str, Sequence[CurvePoint]] = field(default_factory=dict[str, list[CurvePoint]])
    # Own scores of a benchmark under the names of its columns in `published.yaml`.
    own: Mapping[Benchmark, Mapping[str, float]] = field(
        default_factory=dict[Benchmark, dict[str, float]]
    )
    flips: tuple[Flip, ...] = ()
    flips_found: int = 0  # of which `flips` are some


@dataclass(frozen=True, slots=True)
class Beside:
    """Our own scores in the columns of a published table."""

    benchmark: Benchmark
    table: PublishedTable
    own: tuple[float | None, ...]
    disagreements: Sequence[Disagreement]


def report_page(report: EvaluationReport) -> str:
    """The page as HTML; it can be encoded whatever the texts hold."""
    return render_page(
        Path(__file__).with_name("report.html.j2"),
        report=report,
        measures=_MEASURES,
        charts=list(_charts(report)),
        tables=[_with_chart(table, number) for number, table in enumerate(report.tables)],
        published=list(_published(report)),
        titles=TITLES,
    )


def _published(report: EvaluationReport) -> Iterator[Beside]:
    for benchmark, scores in report.own.items():
        for table in published_for(benchmark):
            own = tuple(scores.get(column) for column in table.columns)
            yield Beside(benchmark, table, own, disagreements(table))


def _charts(report: EvaluationReport) -> Iterator[Chart]:
    for measure, title, caption in (
        ("first_position_rate", "Position", "share of verdicts for the answer shown first"),
        (
            "length_bias",
            "Length",
            "share of verdicts for the longer answer; what people chose is in the table",
        ),
    ):
        rows = tuple(Row(name, getattr(judge, measure)) for name, judge in report.judges.items())
        if any(row.estimate for row in rows):
            yield _intervals(Table(title, caption, rows), measure)
    curves = {name: points for name, points in report.curves.items() if len(points) > 1}
    if curves:
        yield _votes_chart(curves)
    for number, heat_map in enumerate(report.heat_maps):
        yield _heat_map(heat_map, f"heat-{number}")


def _with_chart(table: Table, number: int) -> tuple[Table, Chart | None]:
    shown = any(row.estimate for row in table.rows)
    return table, _intervals(table, f"table-{number}") if shown else None


def _intervals(table: Table, salt: str) -> Chart:
    figure, axes = new_figure(height=0.7 + 0.24 * max(3, len(table.rows)))
    shown = [(place, row.estimate) for place, row in enumerate(table.rows) if row.estimate]
    values = [estimate.value for _, estimate in shown]
    axes.errorbar(
        values,
        [place for place, _ in shown],
        xerr=_whiskers([estimate for _, estimate in shown]),
        fmt="o",
        color=COLOURS[0],
        markersize=4,
        ecolor=INK,
        elinewidth=1.1,
        capsize=2.5,
    )
    axes.set_yticks(range(len(table.rows)), [label(row.name) for row in table.rows])
    axes.invert_yaxis()
    axes.set_ylim(len(table.rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.02)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    if table.chance is not None:
        axes.axvline(table.chance, **_CHANCE)
    dashed = "" if table.chance is None else f"; dashed: {table.chance:g}, a coin"
    caption = f"{table.caption}; with 95 % intervals{dashed}"
    return Chart(table.title, caption, svg(figure, salt))


def _whiskers(estimates: Sequence[Estimate]) -> list[list[float]]:
    """How far each interval goes to either side; a percentile interval may end before its value."""
    return [
        [max(0.0, estimate.value - estimate.low) for estimate in estimates],
        [max(0.0, estimate.high - estimate.value) for estimate in estimates],
    ]


def _heat_map(heat_map: HeatMap, salt: str) -> Chart:
    figure, axes = new_figure(height=3.4)
    axes.grid(visible=False)
    # Not imshow: it would put in a picture as a URL, which the page's policy does not load.
    axes.pcolormesh(heat_map.values, cmap="cividis", vmin=0, vmax=1, edgecolor="white", linewidth=2)
    for row, values in enumerate(heat_map.values):
        for column, value in enumerate(values):
            colour = "white" if value < 0.55 else INK
            at = (column + 0.5, row + 0.5)
            axes.text(*at, f"{value:.3f}", ha="center", va="center", color=colour)
    columns, rows = heat_map.column_names, heat_map.row_names
    axes.set_xticks([place + 0.5 for place in range(len(columns))], [label(n) for n in columns])
    axes.set_yticks([place + 0.5 for place in range(len(rows))], [label(n) for n in rows])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(label(heat_map.column_title))
    axes.set_ylabel(label(heat_map.row_title))
    return Chart(heat_map.title, heat_map.caption, svg(figure, salt))


def _votes_chart(curves: Mapping[str, Sequence[CurvePoint]]) -> Chart:
    figure, axes = new_figure()
    for (name, points), colour in zip(curves.items(), COLOURS, strict=False):
        votes = [point.votes for point in points]
        estimates = [point.accuracy for point in points]
        axes.fill_between(
            votes,
            [estimate.low for estimate in estimates],
            [estimate.high for estimate in estimates],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
        axes.plot(
            votes,
            [estimate.value for estimate in estimates],
            color=colour,
            marker="o",
            markersize=3,
            linewidth=1.6,
            label=label(name),
        )
    _whole_numbers(axes)
    axes.set_xlabel("votes in each order")
    axes.set_ylabel("accuracy")
    axes.legend(frameon=False, fontsize=8, loc="best")
    caption = "accuracy of the majority of the first votes, with 95 % intervals; a tie is decided"
    caption += " by the mean of both orders"
    return Chart("Votes", caption, svg(figure, "votes"))


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
