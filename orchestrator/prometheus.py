"""The run's metrics for Prometheus, through the exporter that each of Ray's nodes has.

What a name of `orchestrator.metrics` is called there follows from its row, by Prometheus' rules:
`reward/mean` in scores is `gavel_reward_mean_score`, to which Ray adds `ray_`. Ray writes a
measurement into this process's memory and sends what there is every 10 s from a thread of its own,
so that no step waits for it, and one that cannot be sent is lost without a word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.metrics import (
    COMPONENT,
    KEPT,
    METRICS,
    OF_EACH_REWARD,
    RUN_METRICS,
    Kind,
    Metric,
)

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge, Histogram

LABELS = ("run", "phase")
MOST_SERIES = 100  # of one name: components of rewards are named by their authors
BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)  # seconds
_UNITS = {
    "s": "seconds",
    "share": "ratio",
    "tokens/s": "second",
    "USD": "usd",
}  # the last ends tokens_per_
_RESULTS = "gavel_eval_"
_INVALID = re.compile(r"[^a-zA-Z0-9_]")


@dataclass(frozen=True, slots=True)
class Family:
    """What Prometheus knows under one name."""

    name: str  # without what Ray adds, as in `exposed`
    kind: Kind
    help: str
    labels: tuple[str, ...] = LABELS

    @property
    def exposed(self) -> tuple[str, ...]:
        """The names that a node's exporter writes."""
        match self.kind:
            case "state":
                return (f"ray_{self.name}",)
            case "spread":
                return tuple(f"ray_{self.name}_{part}" for part in ("bucket", "count", "sum"))
            case _:
                return (f"ray_{self.name}_total",)


def family_of(row: Metric) -> Family:
    """How a row of the table is told."""
    stem = _INVALID.sub("_", row.name)
    if row.unit in ("s", "tokens/s"):
        stem = stem.removesuffix("_s")
    unit = _INVALID.sub("_", _UNITS.get(row.unit, row.unit))
    words = {word.removesuffix("s") for word in stem.split("_")}
    if unit and unit.removesuffix("s") not in words:
        stem = f"{stem}_{unit}"
    meaning = f"{row.meaning} ({row.unit})" if row.unit else row.meaning
    return Family(f"gavel_{stem}", row.kind, meaning)


def _of_each_reward(part: str, row: Metric, *more_labels: str) -> Family:
    meaning = row.meaning.replace(" {0}", "").replace(" {1}", "")
    made = family_of(Metric(f"each_reward/{part}", row.unit, meaning, row.kind))
    return Family(made.name, made.kind, made.help, (*LABELS, "reward", *more_labels))


_FAMILIES = {name: family_of(row) for name, row in {**METRICS, **RUN_METRICS}.items()}
_PARTS = {part: _of_each_reward(part, row) for part, row in OF_EACH_REWARD.items()}
_COMPONENT = _of_each_reward("component", COMPONENT, "component")
_KEPT = Family(
    "gavel_synthesis_kept_in_pass_ratio",
    "state",
    "pairs with a trace that is kept, of those asked about in a pass (share)",
    (*LABELS, "source", "number"),
)


def families() -> list[Family]:
    """All that a run can tell."""
    return [*_FAMILIES.values(), *_PARTS.values(), _COMPONENT, _KEPT]


def series_of(name: str) -> tuple[Family, dict[str, str]]:
    """The family of a recorded metric, and the labels it has besides run and phase.

    A reward's own metrics share a few names, however many rewards and components there are, and
    so do the keep rates of sources and passes.
    """
    if name in _FAMILIES:
        return _FAMILIES[name], {}
    if name.startswith(KEPT):
        source, _, number = name.removeprefix(KEPT).rpartition("/pass_")
        return _KEPT, {"source": source, "number": number}
    _, reward, part = name.split("/", 2)
    if part in _PARTS:
        return _PARTS[part], {"reward": reward}
    return _COMPONENT, {"reward": reward, "component": part}


class RayMetrics:
    """Tells Ray of a run's metrics. Life: construct in a connected process, `record` at will, and
    `refresh` more often than Ray reports: it reports a gauge once for each time that it was set.

    So a gauge that is not told again is gone from the exporter, as is that of a driver that died.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._made: dict[Family, Gauge | Counter | Histogram] = {}
        self._series: dict[Family, set[tuple[str, ...]]] = {}  # values of its labels
        self._holds: dict[tuple[Family, tuple[str, ...]], float] = {}  # of gauges
        self._counted: dict[Family, float] = {}  # of what rises, since the run began

    def record(self, phase: str, metrics: Mapping[str, float]) -> None:
        """Tells of metrics whose names are in the table."""
        for name, value in metrics.items():
            family, more = series_of(name)
            labels = (self._run_id, phase, *more.values())
            known = self._series.setdefault(family, set())
            if labels in known or len(known) < MOST_SERIES:  # the rest stands in metrics.jsonl
                known.add(labels)
                self._tell(family, labels, value)

    def refresh(self) -> None:
        """Tells of all that holds once more."""
        for (family, labels), value in self._holds.items():
            self._tell(family, labels, value)

    def end_phase(self, phase: str) -> None:
        """What was so in the phase is told no more; results of evaluations are."""
        for family, labels in list(self._holds):
            if labels[1] == phase and not family.name.startswith(_RESULTS):
                del self._holds[family, labels]

    def _tell(self, family: Family, values: tuple[str, ...], value: float) -> None:
        from ray.util.metrics import Counter, Gauge

        if family not in self._made:
            self._made[family] = _make(family)
        made, labels = self._made[family], dict(zip(family.labels, values, strict=True))
        if isinstance(made, Gauge):
            self._holds[family, values] = value
            made.set(value, labels)
        elif not isinstance(made, Counter):
            made.observe(value, labels)
        elif (rise := self._rise(family, value)) > 0:  # Ray takes no other
            made.inc(rise, labels)

    def _rise(self, family: Family, value: float) -> float:
        if family.kind == "each":
            return value
        before = self._counted.get(family, 0.0)
        self._counted[family] = value
        return value - before


def _make(family: Family) -> Gauge | Counter | Histogram:
    from ray.util.metrics import Counter, Gauge, Histogram

    match family.kind:
        case "state":
            return Gauge(family.name, family.help, family.labels)
        case "spread":
            return Histogram(family.name, family.help, list(BUCKETS), family.labels)
        case _:
            return Counter(family.name, family.help, family.labels)
