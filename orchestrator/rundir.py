"""The run's directory: its layout, its writers, and finding one.

Owns every file of `runs/<run id>/` but `journal/` (the store's) and `tensorboard/` (its
writer's). Whole files are written to a temporary name and renamed, so that a reader, or a
driver after a crash, never meets half of one; `metrics.jsonl` grows by whole lines.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import yaml

from judging.errors import ConfigurationError, DataError
from judging.records import Judgment
from orchestrator.metrics import METRICS
from rewards.protocol import Json, RewardResult

if TYPE_CHECKING:
    from evaluation.metrics import EvaluationResult

EvaluatedPhase = Literal["base", "distill", "reinforce"]
FinalStatus = Literal["done", "failed", "stopped"]
QUESTION_CHARS = 500  # of the question kept beside a trace, enough to know it by
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SUMMARY_FIELDS = (
    "phase",
    "step",
    "pairs",
    "accuracy",
    "accuracy_first_order",
    "flip_rate",
    "first_position_rate",
    "parseable",
    "mean_tokens",
)
_EVALUATED = "eval/"
_STEP_PLACE = ("phase", "phase_index", "total_steps", "step", "at_s")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation of the run: the weights after `step` steps of `phase`."""

    phase: EvaluatedPhase
    step: int
    result: EvaluationResult

    def row(self) -> dict[str, Any]:
        """Flat, as tables show it and the journal keeps it; a share of nothing is None."""
        row = {"phase": self.phase, "step": self.step, **asdict(self.result)}
        row["accuracy_low"], row["accuracy_high"] = row.pop("accuracy_interval")
        return row

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Evaluation:
        """What `row` was given; more keys in it are left out."""
        from evaluation.metrics import EvaluationResult

        values: dict[str, Any] = {f.name: row.get(f.name) for f in fields(EvaluationResult)}
        values["accuracy_interval"] = (row["accuracy_low"], row["accuracy_high"])
        return cls(row["phase"], row["step"], EvaluationResult(**values))

    def metrics(self) -> dict[str, float]:
        row = self.row()
        names = (name for name in METRICS if name.startswith(_EVALUATED))
        measured = {name: row[name.removeprefix(_EVALUATED)] for name in names}
        return {name: number for name, number in measured.items() if number is not None}


@dataclass(frozen=True, slots=True)
class Summary:
    """`summary.json`, which others rely on."""

    run_id: str
    status: FinalStatus
    seed: int
    wall_s: float
    evaluations: tuple[Evaluation, ...]
    peak_rss_bytes: int
    versions: Mapping[str, str]

    def as_json(self) -> dict[str, Json]:
        return {
            "run_id": self.run_id,
            "status": self.status,
            "seed": self.seed,
            "wall_s": self.wall_s,
            "evaluations": [
                {name: row[name] for name in _SUMMARY_FIELDS}
                for row in map(Evaluation.row, self.evaluations)
            ],
            "peak_rss_bytes": self.peak_rss_bytes,
            "versions": dict(self.versions),
        }


@dataclass(frozen=True, slots=True)
class TraceRecord:
    """One judgment as it is kept in `traces/` and shown as a sample."""

    presentation_uid: str
    order: str
    sample: int
    question: str  # the start of the last user turn
    gold: str
    verdict: str | None
    reason: str | None  # why there is no verdict
    status: str  # of the reward
    score: float | None
    components: Mapping[str, float]  # of each reward, and of their components
    info: Mapping[str, Json]
    text: str
    tokens: int
    finish_reason: str
    seed: int
    weight_version_min: int
    weight_version_max: int

    @classmethod
    def of(cls, judgment: Judgment, result: RewardResult) -> TraceRecord:
        presentation, rollout = judgment.presentation, judgment.rollout
        verdict = judgment.trace.verdict
        return cls(
            presentation_uid=presentation.uid,
            order=presentation.order,
            sample=rollout.sample,
            question=presentation.pair.conversation[-1].content[:QUESTION_CHARS],
            gold=presentation.gold,
            verdict=verdict.letter,
            reason=verdict.reason,
            status=result.status,
            score=result.score,
            components=result.components,
            info=result.info,
            text=rollout.text,
            tokens=len(rollout.token_ids),
            finish_reason=rollout.finish_reason,
            seed=rollout.seed,
            weight_version_min=rollout.weight_version_min,
            weight_version_max=rollout.weight_version_max,
        )


@dataclass(frozen=True, slots=True)
class StepRow:
    """One step as `metrics.jsonl` holds it."""

    phase: str
    phase_index: int
    total_steps: int | None
    step: int
    at_s: float  # wall clock, Unix time
    metrics: Mapping[str, float]


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
        if not _RUN_ID.fullmatch(run_id):
            raise ConfigurationError(
                f"run id {run_id!r}: use letters, digits, '.', '_' and '-' only, a letter or "
                "digit first"
            )
        run = cls(runs_dir / run_id)
        summary = run.read_summary()
        if summary and summary["status"] == "done":
            raise ConfigurationError(
                f"{run.path} already holds a finished run: choose another run id, or move that "
                "directory away"
            )
        run.path.mkdir(parents=True, exist_ok=True)
        return run

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
        """Every key, as the run was begun or last resumed with."""
        return yaml.safe_load(self.config.read_text("utf-8"))

    def write_summary(self, summary: Summary) -> None:
        with atomic_writer(self.summary) as file:
            json.dump(summary.as_json(), file, indent=2, allow_nan=False)

    def read_summary(self) -> dict[str, Any] | None:
        return json.loads(self.summary.read_text("utf-8")) if self.summary.exists() else None

    def append_step(self, row: StepRow) -> None:
        place = {name: getattr(row, name) for name in _STEP_PLACE}
        self._append_metrics({**place, **row.metrics})

    def append_evaluation(self, evaluation: Evaluation, at_s: float) -> None:
        place = {"phase": evaluation.phase, "step": evaluation.step, "at_s": at_s}
        self._append_metrics({**place, **evaluation.metrics()})

    def read_measurements(self) -> tuple[list[StepRow], list[dict[str, Any]]]:
        """The steps, and the evaluations as `Evaluation.row` gives them, of `metrics.jsonl`.

        The end of a row that a crash cut off is left out.
        """
        steps: list[StepRow] = []
        evaluations: list[dict[str, Any]] = []
        for row in _read_lines(self.metrics):
            if "phase_index" in row:
                place = {name: row.pop(name) for name in _STEP_PLACE}
                steps.append(StepRow(**place, metrics=row))
            else:
                nothing = {name: None for name in METRICS if name.startswith(_EVALUATED)}
                whole = {**nothing, **row}
                evaluations.append({name.removeprefix(_EVALUATED): whole[name] for name in whole})
        return steps, evaluations

    def read_events(self) -> list[dict[str, Any]]:
        return _read_lines(self.events)

    def keep_steps(self, committed: Mapping[tuple[int, int], StepRow]) -> None:
        """Makes `metrics.jsonl` tell of the committed steps alone, by (phase index, step).

        A driver may have died between a commit and its row, or in the middle of a row.
        """
        rows = [
            row
            for row in _read_lines(self.metrics)
            if "phase_index" not in row or (row["phase_index"], row["step"]) in committed
        ]
        told = {(row["phase_index"], row["step"]) for row in rows if "phase_index" in row}
        missing = [step for place, step in committed.items() if place not in told]
        with atomic_writer(self.metrics) as file:
            for row in rows:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        for step in missing:
            self.append_step(step)

    def _append_metrics(self, row: Mapping[str, Json]) -> None:
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def write_traces(
        self, phase: int, kind: str, step: int, records: Sequence[TraceRecord]
    ) -> Path:
        """One file for each step, `traces/<phase>-<kind>/step-<step>.jsonl`."""
        path = self.traces / f"{phase}-{kind}" / f"step-{step:06d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            for record in records:
                file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
        return path

    def write_batch(self, data: bytes) -> str:
        """Keeps a step's batch; answers its SHA-256, which is its name."""
        digest = hashlib.sha256(data).hexdigest()
        self.batches.mkdir(exist_ok=True)
        with atomic_writer(self._batch(digest), "wb") as file:
            file.write(data)
        return digest

    def read_batch(self, digest: str) -> bytes:
        """Raises DataError if it is not there or not what was written."""
        path = self._batch(digest)
        if not path.exists():
            raise DataError(f"{path} is missing: the run cannot be taken up without it")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise DataError(f"{path} is damaged: its content does not have the SHA-256 of its name")
        return data

    def drop_batches(self, keep: Container[str]) -> None:
        """Removes the batches that no checkpoint needs any more."""
        for path in self.batches.glob("*.safetensors"):
            if path.stem not in keep:
                path.unlink(missing_ok=True)

    def _batch(self, digest: str) -> Path:
        return self.batches / f"{digest}.safetensors"

    def read_traces(self, path: Path) -> list[TraceRecord]:
        return [TraceRecord(**row) for row in _read_lines(path)]

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint after `step` training steps lies, or would."""
        return self.checkpoints / f"step-{step:06d}"

    @contextmanager
    def checkpoint(self, step: int) -> Iterator[Path]:
        """A folder to fill, which is `checkpoints/step-<step>/` once the block has ended well.

        Raises FileExistsError if there is such a checkpoint already.
        """
        final = self.checkpoint_path(step)
        if final.exists():
            raise FileExistsError(f"{final} exists already")
        partial = self.checkpoints / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # of a driver that died while filling it
        partial.mkdir(parents=True)
        yield partial
        partial.rename(final)

    def remove_checkpoint(self, path: str) -> None:
        """`path` is relative to the run's directory."""
        shutil.rmtree(self.path / path, ignore_errors=True)


@contextmanager
def atomic_writer(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """A file, text or bytes, that appears under its name whole, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # A lone surrogate, which text out of JSON may hold, becomes the escape JSON has for it.
    encoding, errors = ("utf-8", "backslashreplace") if mode == "w" else (None, None)
    try:
        with temporary.open(mode, encoding=encoding, errors=errors) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def all_runs(runs_dir: Path) -> list[RunDirectory]:
    """The runs there are, the one begun last at the end."""
    configs = sorted(runs_dir.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime_ns)
    return [RunDirectory(path.parent) for path in configs]


def latest_run(runs_dir: Path) -> RunDirectory | None:
    return next(reversed(all_runs(runs_dir)), None)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]
