"""What a run measures: each step, and at times how good its weights are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, get_args

from evaluation.items import Benchmark
from orchestrator.metrics import METRICS

if TYPE_CHECKING:
    from evaluation.metrics import EvaluationResult

EvaluatedPhase = Literal["base", "distill", "reinforce"]
EVALUATED = "eval/"  # before the name of what an evaluation measured
_NAMES = [name.removeprefix(EVALUATED) for name in METRICS if name.startswith(EVALUATED)]


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
class Evaluation:
    """One evaluation of the run: the weights after `step` training steps, the last of `phase`."""

    phase: EvaluatedPhase
    step: int
    result: EvaluationResult
    made_in: int  # index of the phase
    benchmarks: Mapping[str, float] = field(default_factory=dict)  # totals, as shares
    trained_in: int | None = None  # index of the phase that trained the weights; None: none did

    def row(self) -> dict[str, Any]:
        """Flat, as tables show it and the journal keeps it; a share of nothing is None."""
        names = ("phase", "step", "made_in", "trained_in")
        place = {name: getattr(self, name) for name in names}
        row = {**place, **asdict(self.result), "benchmarks": dict(self.benchmarks)}
        row["accuracy_low"], row["accuracy_high"] = row.pop("accuracy_interval")
        return row

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Evaluation:
        """What `row` was given; more keys in it are left out."""
        from evaluation.metrics import EvaluationResult

        values: dict[str, Any] = {f.name: row.get(f.name) for f in fields(EvaluationResult)}
        values["accuracy_interval"] = (row["accuracy_low"], row["accuracy_high"])
        result = EvaluationResult(**values)
        place = (row["phase"], row["step"], result, row["made_in"], row["benchmarks"])
        return cls(*place, row.get("trained_in"))

    def metrics(self) -> dict[str, float]:
        row = {**self.row(), **self.benchmarks}
        measured = {f"{EVALUATED}{name}": row.get(name) for name in _NAMES}
        return {name: number for name, number in measured.items() if number is not None}

    def score(self, name: str) -> float:
        """By a metric's name without `eval/`, or a benchmark's."""
        return self.metrics()[f"{EVALUATED}{name}"]


def last_of_each_phase(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of evaluations in order; a phase that comes again counts again."""
    return [list(of_phase)[-1] for _, of_phase in groupby(rows, key=_trained)]


def _trained(row: Mapping[str, Any]) -> tuple[str, int | None]:
    return row["phase"], row.get("trained_in")


def is_evaluation(row: Mapping[str, Any]) -> bool:
    """Of a row of `metrics.jsonl`."""
    return "phase_index" not in row


def evaluation_row(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What `Evaluation.row` gave, from `Evaluation.metrics` with other keys beside them."""
    row = dict.fromkeys(_NAMES) | {name.removeprefix(EVALUATED): metrics[name] for name in metrics}
    scores = {name: row.pop(name) for name in get_args(Benchmark)}
    return row | {"benchmarks": {name: s for name, s in scores.items() if s is not None}}
