"""What came of the pairs so far, counted: by source, by pass and by reason."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from synthesis.records import Outcome


@dataclass(slots=True)
class PassCounts:
    """Pairs of one source in one pass."""

    asked: int = 0
    kept: int = 0

    @property
    def keep_rate(self) -> float:
        return self.kept / self.asked if self.asked else 0.0


@dataclass(slots=True)
class Tally:
    """Grows by one outcome at a time."""

    states: Counter[str] = field(default_factory=Counter)
    rejections: Counter[str] = field(default_factory=Counter)  # of answers; one may have several
    errors: int = 0  # requests that were not answered
    passes: dict[tuple[str, int], PassCounts] = field(
        default_factory=lambda: defaultdict(PassCounts)
    )

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> Tally:
        tally = cls()
        for outcome in outcomes:
            tally.add(outcome)
        return tally

    def add(self, outcome: Outcome) -> None:
        self.states[outcome.state] += 1
        for attempt in outcome.attempts:
            self.errors += attempt.error is not None
            self.rejections.update(attempt.rejections)
        last = max((attempt.number for attempt in outcome.attempts), default=0)
        for number in range(1, last + 1):
            counts = self.passes[outcome.source, number]
            counts.asked += 1
            counts.kept += outcome.state == "kept" and number == last

    @property
    def pairs(self) -> int:
        return sum(self.states.values())

    @property
    def asked(self) -> int:
        """Pairs that were asked about until it was known what comes of them."""
        return self.pairs - self.states["unasked"]

    @property
    def kept_share(self) -> float:
        """Of those."""
        return self.states["kept"] / self.asked if self.asked else 0.0

    def metrics(self) -> dict[str, float]:
        """By names of `orchestrator.metrics`."""
        metrics = {
            "synthesis/pairs": self.asked,
            "synthesis/kept": self.kept_share,
            **{f"synthesis/{state}": self.states[state] for state in ("rejected", "failed")},
            **{f"synthesis/rejections/{why}": n for why, n in self.rejections.items()},
        }
        for (source, number), counts in sorted(self.passes.items()):
            metrics[f"synthesis/kept/{source}/pass_{number}"] = counts.keep_rate
        return metrics

    def tree(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "pairs": self.pairs,
            "asked": self.asked,
            **{state: self.states[state] for state in ("kept", "rejected", "failed", "unasked")},
            "unanswered_requests": self.errors,
            "rejections": dict(self.rejections.most_common()),
            "passes": [
                {
                    "source": source,
                    "pass": number,
                    "asked": counts.asked,
                    "kept": counts.kept,
                    "keep_rate": counts.keep_rate,
                }
                for (source, number), counts in sorted(self.passes.items())
            ],
        }
