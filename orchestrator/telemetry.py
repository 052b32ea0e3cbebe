"""Where a run's measurements go: `metrics.jsonl`, TensorBoard, Prometheus and the console.

Owns the measuring of a step's time shares and the fan-out; the names and meanings of metrics are
in `orchestrator.metrics`. What recovery needs is the journal's, not telemetry's.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from rich.console import RenderableType

from orchestrator.console import (
    ProgressMode,
    RunConsole,
    evaluation_line,
    evaluations_table,
    samples_table,
)
from orchestrator.disk import writing
from orchestrator.journal_records import Best
from orchestrator.measurements import Evaluation, StepRow, last_of_each_phase
from orchestrator.metrics import SPANS, check_metrics
from orchestrator.prometheus import RayMetrics
from orchestrator.rundir import RunDirectory, TraceRecord
from orchestrator.vitals import Vitals

_ANY = "any"  # at least one span of any name


class StepTimer:
    """Divides a step's wall time among named spans, which may overlap.

    A name's time is that in which at least one of its spans was open, however many there were. What
    was scored while nothing was generated any more is told apart: it is what scoring costs.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._open: Counter[str] = Counter()
        self.restart()

    def restart(self) -> None:
        self._began_at_s = self._clock()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._since_s = dict.fromkeys(self._open, self._began_at_s)  # spans may go on
        self._score_alone_s = 0.0
        self._changed_at_s = self._began_at_s

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        if name not in SPANS:
            raise ValueError(f"no span {name!r}: orchestrator/metrics.py names {SPANS}")
        with self._opened(name), self._opened(_ANY):
            yield

    @contextmanager
    def _opened(self, name: str) -> Iterator[None]:
        self._note_scoring()
        if self._open[name] == 0:
            self._since_s[name] = self._clock()
        self._open[name] += 1
        try:
            yield
        finally:
            self._note_scoring()
            self._open[name] -= 1
            if self._open[name] == 0:
                self._seconds[name] += self._clock() - self._since_s[name]

    def _note_scoring(self) -> None:
        now_s = self._clock()
        if self._open["score"] and not self._open["generate"]:
            self._score_alone_s += now_s - self._changed_at_s
        self._changed_at_s = now_s

    def times(self) -> dict[str, float]:
        """The step's `time/*` metrics up to now; `other` is the time in no span."""
        now_s = self._clock()
        self._note_scoring()
        seconds = {name: self._seconds[name] for name in (*SPANS, _ANY) if name in self._seconds}
        for name, count in self._open.items():
            if count:
                seconds[name] = seconds.get(name, 0.0) + now_s - self._since_s[name]
        spans = {f"time/{name}_s": seconds[name] for name in SPANS if name in seconds}
        if "score" in seconds:
            spans["time/score_alone_s"] = self._score_alone_s
        step_s = now_s - self._began_at_s
        other_s = step_s - seconds.get(_ANY, 0.0)
        return {**spans, "time/other_s": other_s, "time/step_s": step_s}


class Telemetry:
    """Lifecycle: `with Telemetry(...)`, in it `with phase(...)`, in it for each step
    `begin_step()`, spans, `step(...)`.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        tensorboard: bool = True,
        samples: int = 3,
        samples_every_steps: int = 10,
        progress: ProgressMode = "auto",
        steps_done: int = 0,
        vitals: Vitals | None = None,
        console: RunConsole | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._run = run
        self._samples = samples
        self._samples_every_steps = samples_every_steps
        self.vitals = vitals or Vitals(run.run_id, clock)
        self._console = console or RunConsole(progress, vitals=self.vitals)
        self.to_ray: RayMetrics | None = None  # as long as a cluster is joined
        self._wall_clock = wall_clock
        self._timer = StepTimer(clock)
        self._board = TensorBoard(run, steps_done) if tensorboard else None
        self._phase = StepRow("", 0, None, 0, 0.0, {})  # the current phase, to be filled in
        self._steps = steps_done  # of all phases together
        self._committed_at_s: float | None = None  # by the wall clock, the newest step

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._board is not None:
            self._board.close()

    @contextmanager
    def phase(
        self, kind: str, index: int, total_steps: int | None, *, done: int = 0
    ) -> Iterator[None]:
        """`done` steps of it were committed before."""
        self._phase = StepRow(kind, index, total_steps, 0, 0.0, {})
        self.vitals.change(phase=kind, step=done, total_steps=total_steps)
        self._console.begin_phase(kind, total_steps, done=done)
        self._timer.restart()
        self._show_place(index, done, total_steps)
        try:
            yield
        finally:
            self._console.end_phase()
            if self.to_ray is not None:
                self.to_ray.end_phase(kind)
        self.vitals.change(phase="", step=0, total_steps=None)  # else it is where the run ended

    def begin_step(self) -> None:
        """Starts the step's clock; what lies between two steps counts to neither."""
        self._timer.restart()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Around one of the parts that a step's time is divided into."""
        self.vitals.sign()
        with self._timer.span(name):
            yield
        self.vitals.sign()

    def show_now(self, metrics: Mapping[str, float]) -> None:
        """What is so now, for who watches the run from the cluster; it is not written down.

        To be called every few seconds; all that was shown before is shown again.
        """
        if self.to_ray is not None:
            self.to_ray.refresh()
            if self.vitals.now.phase:
                self.to_ray.record(self.vitals.now.phase, metrics)

    def _show_place(self, index: int, done: int, total_steps: int | None) -> None:
        place: dict[str, float] = {"run/phase": index + 1, "run/step": done}
        if total_steps is not None:
            place["run/total_steps"] = total_steps
        if self._committed_at_s is not None:  # it stays the last one, whatever the phase
            place["run/last_commit_timestamp"] = self._committed_at_s
        self.show_now(place)

    def step(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Records a finished step, which counts from 1, and its times.

        Answers all that was recorded: `metrics`, `time/*`, and `tokens_per_s` where `metrics`
        has `tokens`. Raises as `orchestrator.metrics.check_metrics`.
        """
        times = self._timer.times()
        recorded = {**metrics, **times}
        if "tokens" in metrics:
            recorded["tokens_per_s"] = metrics["tokens"] / max(times["time/step_s"], 1e-9)
        check_metrics(recorded, f"{self._phase.phase} step {step}")
        self._steps += 1
        row = replace(self._phase, step=step, at_s=self._wall_clock(), metrics=recorded)
        self._run.append_step(row)
        if self._board is not None:
            tags = {f"{row.phase}/{name}": number for name, number in recorded.items()}
            self._board.add(tags, self._steps, row.at_s)
        self._committed_at_s = row.at_s
        self.vitals.change(step=step, committed_at_s=self.vitals.clock())
        if self.to_ray is not None:
            now = {"run/step": step, "run/last_commit_timestamp": row.at_s}
            self.to_ray.record(row.phase, recorded | now)
        self._console.step(step, recorded)
        return recorded

    def samples(self, step: int, records: Sequence[TraceRecord]) -> None:
        """Shows some of a step's judgments, each of another prompt, every `samples_every_steps`."""
        is_due = step == 1 or step % self._samples_every_steps == 0
        if self._samples and is_due and not self._console.is_quiet:
            first_of_each = {record.presentation_uid: record for record in reversed(records)}
            shown = list(reversed(first_of_each.values()))[: self._samples]
            self._console.show(samples_table(f"{self._phase.phase} step {step}", shown))

    def evaluation(self, evaluation: Evaluation) -> None:
        """Records an evaluation and says its result."""
        metrics = evaluation.metrics()
        check_metrics(metrics, f"evaluation after {evaluation.phase} step {evaluation.step}")
        at_s = self._wall_clock()
        self._run.append_evaluation(evaluation, at_s)
        if self._board is not None:
            self._board.add(metrics, self._steps, at_s)
        if self.to_ray is not None:
            self.to_ray.record(evaluation.phase, metrics)
        self.vitals.sign()
        self._console.say(evaluation_line(evaluation.row()))

    def synthesis(self, pairs: int, metrics: Mapping[str, float], *, is_last: bool = False) -> None:
        """Shows how far a phase of synthesis is; its last figures are recorded."""
        check_metrics(metrics, f"synthesis after {pairs} pairs")
        self.vitals.change(step=pairs)
        if self.to_ray is not None:
            self.to_ray.record(self._phase.phase, metrics)
        self._console.step(pairs, metrics)
        if is_last:
            at_s = self._wall_clock()
            self._run.append_step(replace(self._phase, step=pairs, at_s=at_s, metrics=metrics))
            if self._board is not None:
                self._board.add(metrics, self._steps, at_s)

    def show(self, table: RenderableType) -> None:
        self._console.show(table)

    def say(self, text: str) -> None:
        """A line for the person at the console; what is told there, is a sign of life too."""
        self.vitals.sign()
        self._console.say(text)

    def final_table(self, evaluations: Sequence[Evaluation], best: Best | None = None) -> None:
        """The last evaluation of each phase, with the gain of each phase."""
        if last := last_of_each_phase(evaluation.row() for evaluation in evaluations):
            self._console.show(evaluations_table(last))
        if best is not None:
            self.say(f"the best by {best.by} ({best.score:.3f}): {best.path}")


class TensorBoard:
    """Scalars in TensorBoard's own format: torch is not needed, and no thread, whose failure would
    show as a traceback. Raises InfrastructureError if the disk does not take them.
    """

    def __init__(self, run: RunDirectory, steps_done: int = 0) -> None:
        # Generated modules, whose names a type checker cannot see.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._path = run.tensorboard / name
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(self._path.open("wb"))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if steps_done:  # readers forget what a driver that died wrote of later steps
            start = SessionLog(status=SessionLog.START)
            self._write(Event(step=steps_done + 1, session_log=start))

    def add(self, scalars: Mapping[str, float], step: int, at_s: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(Event(wall_time=at_s, step=step, summary=Summary(value=values)))

    def _write(self, event: Any) -> None:
        with writing(self._path):
            self._records.write(event.SerializeToString())
            self._records.flush()

    def close(self) -> None:
        with suppress(OSError):  # of a write that failed already
            self._records.close()
