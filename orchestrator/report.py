"""`report.html`: a run on one self-contained page, made from the run's directory alone.

Owns the page's parts and its plots; the frame that keeps untrusted text in its place is
`evaluation.page`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.page import COLOURS, INK, SOFT, Chart, new_figure, render_page, svg
from orchestrator.console import PHASE_TITLES, duration, share
from orchestrator.disk import atomic_writer
from orchestrator.measurements import StepRow, last_of_each_phase
from orchestrator.metrics import metric
from orchestrator.rundir import RunDirectory, TraceRecord
from orchestrator.synthesis_report import synthesis_charts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAMPLES_SHOWN = 4  # of each phase's last step
_TIMES = ("wait", "train", "validate", "publish", "commit", "other")  # one after the other
_STEP_CHARTS = (
    ("Reward", ("reward/mean",)),
    ("Verdicts", ("accuracy", "parseable")),
    ("Position", ("flip_rate", "first_position_rate")),
    ("Loss", ("loss", "validation/loss")),
    ("Divergence from the teacher", ("teacher_kl",)),
    ("KL to the reference", ("kl",)),
    ("Gradient norm", ("grad_norm",)),
    ("Learner against engine", ("logprob_gap", "mismatch/k3_kl")),
    ("Ratio of learner to engine", tuple(f"mismatch/ratio_{p}" for p in ("p01", "p50", "p99"))),
    ("Length", ("response_tokens",)),
    ("Throughput", ("tokens_per_s",)),
)


@dataclass(frozen=True, slots=True)
class SampleGroup:
    title: str
    records: Sequence[TraceRecord]


def write_report(run: RunDirectory) -> Path:
    """Writes `report.html` from what the run's directory holds so far."""
    steps, evaluations = run.read_measurements()
    page = render_page(
        Path(__file__).with_name("report.html.j2"),
        run_id=run.run_id,
        summary=run.read_summary(),
        evaluations=evaluations,
        titles=PHASE_TITLES,
        duration=duration,
        share=share,
        charts=[*_charts(steps, evaluations), *synthesis_charts(run.path)],
        samples=_samples(run),
        config=run.config.read_text("utf-8") if run.config.exists() else "",
    )
    with atomic_writer(run.report) as file:
        file.write(page)
    return run.report


def _charts(steps: Sequence[StepRow], evaluations: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    if evaluations:
        yield _evaluation_chart(evaluations)
    if len(evaluations) > len(last_of_each_phase(evaluations)):
        yield _evaluations_chart(evaluations)
    phases: dict[int, list[StepRow]] = {}
    for row in steps:
        phases.setdefault(row.phase_index, []).append(row)
    kinds = [rows[0].phase for rows in phases.values()]
    for index, rows in phases.items():
        kind = rows[0].phase
        name = kind if kinds.count(kind) == 1 else f"{kind}, phase {index + 1}"
        of_phase = f" ({name})" if len(phases) > 1 else ""
        for title, names in _STEP_CHARTS:
            measured = [name for name in names if any(name in row.metrics for row in rows)]
            if measured:
                yield _line_chart(title + of_phase, rows, measured)
        if any("time/other_s" in row.metrics for row in rows):
            yield _time_chart("Time of a step" + of_phase, rows)


def _evaluation_chart(evaluations: Sequence[Mapping[str, Any]]) -> Chart:
    figure, axes = _figure()
    shown = last_of_each_phase(evaluations)
    accuracy = [row["accuracy"] for row in shown]
    below = [max(0.0, row["accuracy"] - row["accuracy_low"]) for row in shown]
    above = [max(0.0, row["accuracy_high"] - row["accuracy"]) for row in shown]
    places = range(len(shown))
    colours = dict(zip(PHASE_TITLES, COLOURS, strict=False))
    axes.bar(
        places,
        accuracy,
        width=0.6,
        color=[colours.get(row["phase"], SOFT) for row in shown],
        yerr=[below, above],
        capsize=4,
        error_kw={"elinewidth": 1.2, "ecolor": INK},
    )
    for place, row in zip(places, shown, strict=True):
        axes.text(place, 0.03, f"{row['accuracy']:.3f}", ha="center", color="white", weight="bold")
    axes.axhline(0.5, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xticks(places, [PHASE_TITLES.get(str(row["phase"]), "") for row in shown])
    axes.set_ylim(0, 1)
    caption = "gold verdicts over both orders after each phase, with the interval; dashed: chance"
    return Chart("Held-out accuracy", caption, svg(figure, "evaluations"))


def _evaluations_chart(evaluations: Sequence[Mapping[str, Any]]) -> Chart:
    figure, axes = _figure()
    rows = sorted(evaluations, key=lambda row: row["step"])
    steps = [row["step"] for row in rows]
    low, high = ([row[f"accuracy_{end}"] for row in rows] for end in ("low", "high"))
    axes.fill_between(steps, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
    benchmarks = dict.fromkeys(name for row in rows for name in row["benchmarks"])
    for name, colour in zip(("held-out", *benchmarks), cycle(COLOURS)):
        points = [
            (row["step"], row["accuracy"] if name == "held-out" else row["benchmarks"][name])
            for row in rows
            if name == "held-out" or name in row["benchmarks"]
        ]
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=name)
    axes.axhline(0.5, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_ylim(0, 1)
    axes.set_xlabel("training step of the run")
    if benchmarks:
        axes.legend(frameon=False, fontsize=8, loc="best")
    caption = "of the held-out pairs with the 95 % interval, and of benchmarks; dashed: chance"
    return Chart("Accuracy over the run", caption, svg(figure, "evaluations over the run"))


def _line_chart(title: str, rows: Sequence[StepRow], names: Sequence[str]) -> Chart:
    figure, axes = _figure()
    for name, colour in zip(names, COLOURS, strict=False):
        points = [(row.step, row.metrics[name]) for row in rows if name in row.metrics]
        axes.plot(
            [step for step, _ in points],
            [number for _, number in points],
            color=colour,
            linewidth=1.6,
            marker="o" if len(points) < 20 else None,
            markersize=3,
            label=name,
        )
    if len(names) > 1:
        axes.legend(frameon=False, fontsize=8, loc="best")
        if all(metric(name).unit == "share" for name in names):
            axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("step")
    caption = "; ".join(
        f"{name}: {metric(name).meaning}" if len(names) > 1 else metric(name).meaning
        for name in names
    )
    units = {metric(name).unit for name in names} - {""}
    if len(units) == 1:
        axes.set_ylabel(units.pop())
    return Chart(title, caption, svg(figure, title))


def _time_chart(title: str, rows: Sequence[StepRow]) -> Chart:
    figure, axes = _figure()
    colours = {f"time/{span}_s": colour for span, colour in zip(_TIMES, COLOURS, strict=False)}
    shown = [name for name in colours if any(name in row.metrics for row in rows)]
    seconds = [[row.metrics.get(name, 0.0) for row in rows] for name in shown]
    # One plateau a step: the last value is given twice, as the right edge of the last step.
    axes.stackplot(
        [row.step - 0.5 for row in rows] + [rows[-1].step + 0.5],
        [[*series, series[-1]] for series in seconds],
        step="post",
        colors=[colours[name] for name in shown],
        labels=[name.removeprefix("time/").removesuffix("_s") for name in shown],
    )
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.2))
    axes.set_xlabel("step")
    axes.set_ylabel("s")
    caption = "where the wall time of each step went"
    return Chart(title, caption, svg(figure, title))


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="y", useOffset=False)
    return figure, axes


def _samples(run: RunDirectory) -> list[SampleGroup]:
    """Judgments of each phase's last step, each of another prompt."""
    groups = []
    for folder in sorted(run.traces.glob("*-*"), key=lambda path: int(path.name.split("-")[0])):
        files = sorted(folder.glob("step-*.jsonl"))
        if files:
            first_of_each: dict[str, TraceRecord] = {}
            for record in run.read_traces(files[-1]):
                first_of_each.setdefault(record.presentation_uid, record)
            shown = list(first_of_each.values())[:SAMPLES_SHOWN]
            step = int(files[-1].stem.removeprefix("step-"))
            groups.append(SampleGroup(f"{folder.name.split('-', 1)[1]}, step {step}", shown))
    return groups
