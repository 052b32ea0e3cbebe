"""What a person sees while a run goes on: progress, sample judgments, tables.

Owns looks only; it measures nothing and writes no file. Text of a model is shown as text: it can
neither carry markup nor drive the terminal. Where the output is no terminal, every line of a run
begins with run, phase and step, `first reinforce 12/61  `, which `STAMPED` takes apart.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, Literal, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from judging.display import printable
from judging.errors import GavelError
from orchestrator.metrics import metric
from orchestrator.rundir import TraceRecord
from orchestrator.vitals import Vitals

ProgressMode = Literal["auto", "bars", "lines", "quiet"]
PHASE_TITLES = {"base": "base", "distill": "distilled", "reinforce": "reinforced"}
_HEADLINES = {
    "synthesis/kept": "kept",
    "synthesis/cost_usd": "USD",
    "reward/mean": "reward",
    "accuracy": "accuracy",
    "loss": "loss",
    "validation/loss": "validation",
    "tokens_per_s": "tokens/s",
}
STAMPED = re.compile(r"(?P<run>\S+) (?P<phase>\S+) (?P<step>\d+|-)(/(?P<steps>\d+))?  (?P<text>.*)")
BEGINS = "begins"  # of a phase, after its place
_LINES_WIDTH = 120  # of tables, where the output is no terminal
_SECONDS_BETWEEN_LINES = 1.0


class ProgressView(Protocol):
    """Shows the steps of one phase after another."""

    def begin(self, title: str, total_steps: int | None) -> None: ...

    def step(self, step: int, headline: str, left: str) -> None: ...

    def end(self) -> None: ...


class Bars:
    """One bar for each phase, with the headline metrics beside it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def begin(self, title: str, total_steps: int | None) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[headline]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            console=self._console,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task(title, total=total_steps, headline="", left="")
        self._progress.start()

    def step(self, step: int, headline: str, left: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=step, headline=headline, left=left)

    def end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class Lines:
    """One line for each step, but at most one a second; never without a phase's last step."""

    def __init__(
        self, console: Console, clock: Callable[[], float], *, is_stamped: bool = False
    ) -> None:
        self._console = console
        self._clock = clock
        self._is_stamped = is_stamped  # so that each line says its step already
        self._title = ""
        self._total = "?"
        self._held: str | None = None  # the latest step's line, if it was not shown
        self._shown_at_s = float("-inf")

    def begin(self, title: str, total_steps: int | None) -> None:
        self._title, self._total = title, "?" if total_steps is None else str(total_steps)
        line = title if total_steps is None else f"{title}: {total_steps} steps"
        self._show(BEGINS if self._is_stamped else line)
        self._shown_at_s = float("-inf")

    def step(self, step: int, headline: str, left: str) -> None:
        place = "" if self._is_stamped else f"{self._title} {step}/{self._total}"
        line = "  ".join(filter(None, (place, headline, left)))
        if self._clock() - self._shown_at_s < _SECONDS_BETWEEN_LINES:
            self._held = line
            return
        self._held = None
        self._shown_at_s = self._clock()
        self._show(line)

    def end(self) -> None:
        if self._held is not None:
            self._show(self._held)
            self._held = None

    def _show(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)


class Quiet:
    """Shows no progress."""

    def begin(self, title: str, total_steps: int | None) -> None: ...

    def step(self, step: int, headline: str, left: str) -> None: ...

    def end(self) -> None: ...


class RunConsole:
    """The run's output: progress of the current phase, and what is printed beside it."""

    def __init__(
        self,
        progress: ProgressMode = "auto",
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        vitals: Vitals | None = None,
    ) -> None:
        """Lines begin with what `vitals` says, where it is given."""
        self._console = console or output_console()
        self._clock = clock
        if progress == "auto":
            progress = "bars" if self._console.is_terminal else "lines"
        self.is_quiet = progress == "quiet"
        self._view: ProgressView = Quiet()
        if progress == "bars":
            self._view = Bars(self._console)
        elif progress == "lines":
            if vitals is not None:
                out: Any = StampedLines(self._console.file, vitals)
                self._console = Console(file=out, width=self._console.width)
            self._view = Lines(self._console, clock, is_stamped=vitals is not None)
        self._total_steps: int | None = None
        self._done = 0
        self._began_at_s = 0.0

    def begin_phase(self, title: str, total_steps: int | None, *, done: int = 0) -> None:
        """`done` steps of it were taken before, at a pace that is not known."""
        self._total_steps, self._done = total_steps, done
        self._began_at_s = self._clock()
        self._view.begin(title, total_steps)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """`step` counts from 1."""
        left = ""
        if self._total_steps is not None and step < self._total_steps:
            pace_s = (self._clock() - self._began_at_s) / (step - self._done)
            left = f"{duration(pace_s * (self._total_steps - step))} left"
        self._view.step(step, headline(metrics), left)

    def end_phase(self) -> None:
        self._view.end()

    def say(self, text: str) -> None:
        """Prints a line, unless the console is quiet."""
        if not self.is_quiet:
            self._console.print(Text(printable(text)), soft_wrap=True, highlight=False)

    def show(self, renderable: RenderableType) -> None:
        """Prints a table, also if the console is quiet."""
        self._console.print(renderable)


class StampedLines:
    """A file that passes text on, each line with the start that a log's lines have."""

    def __init__(self, out: IO[str], vitals: Vitals) -> None:
        self._out, self._vitals = out, vitals
        self._is_at_start = True
        self.encoding = getattr(out, "encoding", None)  # by which rich draws its tables

    def write(self, text: str) -> int:
        if text:
            start, ends = self._vitals.line_start, text.endswith("\n")
            body = text.removesuffix("\n").replace("\n", f"\n{start}") + "\n" * ends
            self._out.write(start + body if self._is_at_start else body)
            self._is_at_start = ends
        return len(text)

    def flush(self) -> None:
        self._out.flush()


def aside(vitals: Vitals, text: str) -> None:
    """A line beside a run's console, which may not be there yet; stdout may be for a program."""
    start = "" if sys.stderr.isatty() else vitals.line_start
    print(start + text.replace("\n", f"\n{start}"), file=sys.stderr)


@contextmanager
def errors_with_place(vitals: Vitals) -> Iterator[None]:
    """What ends the run is told where its other lines are, and begins as they do."""
    try:
        yield
    except GavelError as error:
        error.place = "" if sys.stderr.isatty() else vitals.line_start
        raise


def output_console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _LINES_WIDTH)


def headline(metrics: Mapping[str, float]) -> str:
    """The metrics that a person follows, on one line."""
    shown = [name for name in _HEADLINES if name in metrics]
    if "reward/mean" in shown and "loss" in shown:
        shown.remove("loss")  # it says little in reinforcement
    return "  ".join(f"{_HEADLINES[name]} {value(name, metrics[name])}" for name in shown)


def value(name: str, number: float) -> str:
    unit = metric(name).unit
    if unit == "share":
        return share(number)
    if unit == "score":
        return f"{number:+.3f}"
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:.4g}"


def share(number: float | None) -> str:
    """A share of nothing is shown as a dash."""
    return "-" if number is None else f"{number:.3f}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def trimmed(text: str, chars: int) -> str:
    """The start and the end of a long text; a verdict stands at the end."""
    if len(text) <= chars:
        return text
    tail = chars // 2
    return f"{text[: chars - tail]} [...] {text[-tail:]}"


def samples_table(title: str, records: Sequence[TraceRecord]) -> Table:
    table = Table(title=title, show_lines=True, title_justify="left")
    table.add_column("question", ratio=2)
    table.add_column("gold")
    table.add_column("verdict")
    table.add_column("score", justify="right")
    table.add_column("judgment", ratio=5)
    for record in records:
        right = record.verdict == record.gold
        table.add_row(
            Text(printable(trimmed(record.question, 160))),
            record.gold,
            Text(record.verdict or str(record.reason), style="green" if right else "red"),
            record.status if record.score is None else f"{record.score:+.2f}",
            Text(printable(trimmed(record.text, 400))),
        )
    return table


def evaluation_line(row: Mapping[str, Any]) -> str:
    benchmarks = "".join(f", {name} {share(score)}" for name, score in row["benchmarks"].items())
    return (
        f"evaluation ({row['phase']}, step {row['step']}): accuracy {_accuracy(row)} "
        f"on {row['pairs']} pairs in both orders, flips {share(row['flip_rate'])}, "
        f"parseable {share(row['parseable'])}, {row['mean_tokens']:.0f} tokens{benchmarks}"
    )


def evaluations_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Evaluations one after another, each with its gain over the one before."""
    table = Table(title="Held-out pairs, judged in both orders", title_justify="left")
    table.add_column("model")
    for column in ("step", "pairs", "accuracy", "gain", "one order", "flips", "says first"):
        table.add_column(column, justify="right")
    table.add_column("parseable", justify="right")
    benchmarks = list(dict.fromkeys(name for row in rows for name in row["benchmarks"]))
    for column in ("tokens", *benchmarks):
        table.add_column(column, justify="right")
    before: float | None = None
    for row in rows:
        table.add_row(
            PHASE_TITLES.get(row["phase"], row["phase"]),
            str(row["step"]),
            str(row["pairs"]),
            _accuracy(row),
            "" if before is None else f"{row['accuracy'] - before:+.3f}",
            share(row["accuracy_first_order"]),
            share(row["flip_rate"]),
            share(row["first_position_rate"]),
            share(row["parseable"]),
            f"{row['mean_tokens']:.0f}",
            *(share(row["benchmarks"].get(name)) for name in benchmarks),
        )
        before = row["accuracy"]
    return table


def _accuracy(row: Mapping[str, Any]) -> str:
    return f"{share(row['accuracy'])} [{share(row['accuracy_low'])}, {share(row['accuracy_high'])}]"


def quiet_libraries() -> None:
    """Keeps what libraries say at import out of the run's own lines; errors still show."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.disable(logging.WARNING)
    os.environ.setdefault("TQDM_DISABLE", "1")
