"""What a run leaves for programs to read: `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from rewards.protocol import Json

if TYPE_CHECKING:
    from orchestrator.journal_records import Best
    from orchestrator.measurements import Evaluation

FinalStatus = Literal["done", "failed", "stopped"]
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
    "benchmarks",
)


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
    best: Best | None = None  # of what checkpoint.best_by names

    def as_json(self) -> dict[str, Json]:
        return {
            "run_id": self.run_id,
            "status": self.status,
            "seed": self.seed,
            "wall_s": self.wall_s,
            "evaluations": [
                {name: row[name] for name in _SUMMARY_FIELDS}
                for row in (evaluation.row() for evaluation in self.evaluations)
            ],
            "peak_rss_bytes": self.peak_rss_bytes,
            "versions": dict(self.versions),
            "best": self.best and asdict(self.best),
        }
