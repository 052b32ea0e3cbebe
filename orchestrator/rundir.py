"""The run's directory: its layout and its writers.

Owns every file of `runs/<run id>/` but `journal/` (the store's) and `tensorboard/` (its
writer's). Whole files are written to a temporary name and renamed, so that a reader, or a
driver after a crash, never meets half of one; `metrics.jsonl` grows by whole lines. What the disk
does not take is an InfrastructureError with the path.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import yaml

from actors.urls import Place
from judging.errors import ConfigurationError, DataError
from orchestrator.checkpoints import (
    find_damage,
    hide_checkpoint,
    new_checkpoint,
    set_aside,
    sweep,
)
from orchestrator.disk import atomic_writer, writing
from orchestrator.measurements import Evaluation, StepRow, evaluation_row, is_evaluation
from orchestrator.summary import Summary
from orchestrator.trace_record import TraceRecord
from rewards.protocol import Json

P = ParamSpec("P")
T = TypeVar("T")

_CHECKPOINT = re.compile(r"step-\d{6,}")
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BENCHMARKS, _TEACHER = "benchmarks", "teacher"
_STEP_PLACE = ("phase", "phase_index", "total_steps", "step", "at_s")


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """`runs/<run id>/`."""

    path: Path

    @classmethod
    def open(cls, runs_dir: Path, run_id: str) -> RunDirectory:
        """The directory of a run that is new or did not finish; makes it if it is not there.

        Raises:
            ConfigurationError: the id is no plain name, or its directory holds a finished run.
        """
        check_run_id(run_id)
        run = cls(runs_dir / run_id)
        run.make_ready()
        return run

    def make_ready(self) -> None:
        """Makes the directory if it is not there; ConfigurationError if it has a finished run."""
        summary = self.read_summary()
        if summary and summary["status"] == "done":
            raise ConfigurationError(
                f"{self.where} already holds a finished run: choose another run id, or move that "
                "directory away"
            )
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)

    # ---- of a run that lies elsewhere these do more: see run_at_url ------------------------------

    @property
    def where(self) -> str:
        return str(self.path)

    def place(self, relative: str) -> Place:
        """What actors are told of a folder in it; any of their nodes can read and write there."""
        return self.path / relative

    def share_model(self, folder: Path) -> str:
        """The place of the model that was made in its `folder`."""
        return str(folder)

    async def in_background(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """What `work`, which may copy files, answers; nothing else waits where that takes long."""
        return work(*arguments, **named)

    def mirror(self, say: Callable[[str], object]) -> None:
        """Copies what a person reads to where the run lies; what goes wrong is said."""

    # ---- files -----------------------------------------------------------------------------------

    @property
    def is_begun(self) -> bool:
        return self.config.exists()

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def traces(self) -> Path:
        return self.path / "traces"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def benchmarks(self, phase: int, step: int) -> Path:
        """What public benchmarks showed in a phase, after `step` training steps of the run."""
        return self.path / _BENCHMARKS / f"{phase}-step-{step:06d}"

    def synthesis(self, phase: int) -> Path:
        """What teachers were asked in a phase, and the data set that came of it."""
        return self.path / "synthesis" / str(phase)

    def teacher(self, phase: int) -> Path:
        """What a teacher said of the traces of a phase that goes on."""
        return self.path / _TEACHER / str(phase)

    @property
    def batches(self) -> Path:
        return self.path / "batches"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    def write_config(self, config_yaml: str) -> None:
        with atomic_writer(self.config) as file:
            file.write(config_yaml)

    def read_config(self) -> dict[str, Any]:
        """Every key, as the run was begun or last resumed with; DataError if it is spoilt."""
        try:
            return yaml.safe_load(self.config.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError(
                f"{self.config} cannot be read: put it back from a copy, or remove it if the "
                "configuration given is the one that the run was begun with"
            ) from error

    def write_summary(self, summary: Summary) -> None:
        with atomic_writer(self.summary) as file:
            json.dump(summary.as_json(), file, indent=2, allow_nan=False)

    def read_summary(self) -> dict[str, Any] | None:
        """None if there is none, or none that can be read."""
        if not self.summary.exists():
            return None
        with suppress(ValueError):  # spoilt: the run ends once more, and writes it again
            return json.loads(self.summary.read_text("utf-8"))
        return None

    def append_step(self, row: StepRow) -> None:
        self._append_metrics(_step_row(row))

    def append_evaluation(self, evaluation: Evaluation, at_s: float) -> None:
        self._append_metrics(_evaluation_row(evaluation, at_s))

    def read_measurements(self) -> tuple[list[StepRow], list[dict[str, Any]]]:
        """The steps, and the evaluations as `Evaluation.row` gives them, of `metrics.jsonl`.

        A row that a crash cut off or spoilt is left out.
        """
        steps: list[StepRow] = []
        evaluations: list[dict[str, Any]] = []
        for row in _read_lines(self.metrics):
            if is_evaluation(row):
                evaluations.append(evaluation_row(row))
            else:
                place = {name: row.pop(name) for name in _STEP_PLACE}
                steps.append(StepRow(**place, metrics=row))
        return steps, evaluations

    def read_events(self) -> list[dict[str, Any]]:
        return _read_lines(self.events)

    def keep_measured(
        self,
        committed: Mapping[tuple[int, int], StepRow],
        evaluations: Sequence[tuple[Evaluation, float]],
    ) -> None:
        """Makes `metrics.jsonl`, `traces/` and `benchmarks/` tell of the committed steps alone, by
        (phase index, step), and of the evaluations that stand, with the wall clock of each.

        A driver may have died between a commit and its row, or in the middle of a row.
        """
        rows = [
            row
            for row in _read_lines(self.metrics)
            if _is_synthesis(row)
            or (not is_evaluation(row) and (row["phase_index"], row["step"]) in committed)
        ]
        told = {(row["phase_index"], row["step"]) for row in rows}
        rows += [_step_row(step) for place, step in committed.items() if place not in told]
        rows += [_evaluation_row(evaluation, at_s) for evaluation, at_s in evaluations]
        with atomic_writer(self.metrics) as file:
            for row in sorted(rows, key=lambda row: row["at_s"]):
                file.write(json.dumps(row, allow_nan=False) + "\n")
        for folder in self.path.glob(f"{_BENCHMARKS}/*-step-*"):
            step = folder.name.rpartition("-")[2]
            if step.isdecimal() and int(step) > len(committed):
                shutil.rmtree(folder, ignore_errors=True)
        traces = {self._trace(phase, row.phase, step) for (phase, step), row in committed.items()}
        for path in self.traces.glob("*/step-*.jsonl"):
            if not path.parent.name.endswith("-evaluate") and path not in traces:
                _remove(path)

    def _append_metrics(self, row: Mapping[str, Json]) -> None:
        with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def write_traces(
        self, phase: int, kind: str, step: int, records: Sequence[TraceRecord]
    ) -> Path:
        """One file for each step, `traces/<phase>-<kind>/step-<step>.jsonl`."""
        path = self._trace(phase, kind, step)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            for record in records:
                file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
        return path

    def _trace(self, phase: int, kind: str, step: int) -> Path:
        return self.traces / f"{phase}-{kind}" / f"step-{step:06d}.jsonl"

    def read_traces(self, path: Path) -> list[TraceRecord]:
        return [TraceRecord(**row) for row in _read_lines(path)]

    def write_batch(self, data: bytes) -> str:
        """Keeps a step's batch; answers its SHA-256, which is its name."""
        digest = hashlib.sha256(data).hexdigest()
        with writing(self.batches):
            self.batches.mkdir(exist_ok=True)
        with atomic_writer(self._batch(digest), "wb") as file:
            file.write(data)
        return digest

    def read_batch(self, digest: str) -> bytes:
        """Raises DataError if it is not there or not what was written."""
        path = self._batch(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise DataError(f"{path} is missing") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise DataError(f"{path} is damaged: its content does not have the SHA-256 of its name")
        return data

    def batch_damage(self, digest: str) -> str | None:
        """What is wrong with a batch, or None; reads it."""
        try:
            self.read_batch(digest)
        except DataError as error:
            return str(error)
        return None

    def drop_batches(self, keep: Container[str]) -> None:
        """Removes the batches that no checkpoint needs any more."""
        for path in self.batches.glob("*.safetensors"):
            if path.stem not in keep:
                _remove(path)

    def _batch(self, digest: str) -> Path:
        return self.batches / f"{digest}.safetensors"

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint after `step` training steps lies, or would."""
        return self.checkpoints / f"step-{step:06d}"

    def checkpoint_name(self, step: int) -> str:
        """Its path within the run's directory."""
        return str(self.checkpoint_path(step).relative_to(self.path))

    def checkpoint(self, step: int) -> AbstractAsyncContextManager[Place]:
        """A place to fill, which is `checkpoints/step-<step>/` once the block has ended well."""
        return new_checkpoint(self.checkpoint_path(step))

    def checkpoint_damage(self, path: str) -> str | None:
        """What is wrong with a checkpoint, or None; reads it. Of it and of the two below, `path` is
        relative to the run's directory.
        """
        return find_damage(self.path / path)

    def set_aside(self, path: str) -> str | None:
        """Gives a damaged checkpoint another name; answers it, or None if it has none."""
        aside = None
        with suppress(OSError):  # it is not used, wherever it lies
            aside = set_aside(self.path / path)
        return str(aside.relative_to(self.path)) if aside else None

    def hide_checkpoint(self, path: str) -> None:
        """It no longer counts, and goes with the next `sweep`."""
        with writing(self.path / path), suppress(FileNotFoundError):
            hide_checkpoint(self.path / path)

    def sweep(self) -> None:
        """Removes the checkpoints that are hidden, and those that were never filled."""
        sweep(self.checkpoints)

    def clean(self, batches: Container[str], checkpoints: Container[str]) -> None:
        """Removes what drivers that died left half done, and the batches and checkpoints that the
        journal does not know, by their digests and paths.
        """
        for path in self.checkpoints.glob("step-*"):
            relative = str(path.relative_to(self.path))
            if relative not in checkpoints and _CHECKPOINT.fullmatch(path.name):
                self.hide_checkpoint(relative)
        self.sweep()
        for folder in (self.path, self.batches, *self.traces.glob("*/")):
            for path in folder.glob(".*.tmp"):
                _remove(path)
        self.drop_batches(batches)


def check_run_id(run_id: str) -> None:
    """Raises ConfigurationError if it is no plain name."""
    if not _RUN_ID.fullmatch(run_id):
        raise ConfigurationError(
            f"run id {run_id!r}: use letters, digits, '.', '_' and '-' only, a letter or "
            "digit first"
        )


def _is_synthesis(row: Mapping[str, Any]) -> bool:
    """Whose figures are of a phase as a whole, which has no steps to commit."""
    return row.get("phase") == "synthesize"


def _step_row(row: StepRow) -> dict[str, Json]:
    return {**{name: getattr(row, name) for name in _STEP_PLACE}, **row.metrics}


def _evaluation_row(evaluation: Evaluation, at_s: float) -> dict[str, Json]:
    place = {name: getattr(evaluation, name) for name in ("phase", "made_in", "trained_in", "step")}
    return {**place, "at_s": at_s, **evaluation.metrics()}


def _remove(path: Path) -> None:
    with writing(path):
        path.unlink(missing_ok=True)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError):  # of what was spoilt
                if line.endswith("\n"):
                    rows.append(json.loads(line))
    return rows
