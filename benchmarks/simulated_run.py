"""A run of the real driver's code on parts that cost nothing: engines sleep, learners nod.

Real are the reinforcement phase, its schedule and pump, balancing, batches, metrics, traces and the
journal's records; simulated are the engines, the verifiers, the learners and, where the caller
wants, the store and the disk.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from actors.load import Loads
from actors.rollout import GenerationRequest
from judging.records import (
    FinishReason,
    JudgePrompt,
    Judgment,
    Message,
    PreferencePair,
    Presentation,
    Rollout,
)
from judging.traces import parse_trace
from orchestrator.config import RunConfig
from orchestrator.config_loading import config_from_tree
from orchestrator.material import Material, PairPrompts
from orchestrator.position import Position
from orchestrator.run import Run
from orchestrator.stopping import StopRequest
from rewards.groups import Group
from rewards.protocol import RewardResult

TEXTS = {letter: f"<answer>[[{letter}]]</answer>" for letter in "AB"}
TRACES = {text: parse_trace(text) for text in TEXTS.values()}


@dataclass(slots=True)
class SimulatedFleet:
    """`slots` samples at a time on each engine; a sample takes `token_s` a token."""

    engines: int
    slots: int
    token_s: float
    length: Callable[[random.Random], int]  # tokens of a sample
    version: Callable[[], int] = lambda: 0
    restarts: int = 0
    _loads: Loads = field(default_factory=Loads)
    _samples: list[int] = field(default_factory=list)
    _free: list[asyncio.Semaphore] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._samples = [0] * self.engines
        self._free = [asyncio.Semaphore(self.slots) for _ in range(self.engines)]
        for engine in range(self.engines):
            self._loads.set(engine, 0)

    @property
    def working(self) -> int:
        return self.engines

    async def generate(self, request: GenerationRequest) -> list[Rollout]:
        engine = self._loads.least()
        assert engine is not None
        self._load(engine, request.samples)
        began, chance = self.version(), random.Random(request.seed)
        lengths = [self.length(chance) for _ in range(request.samples)]
        if self.token_s:
            await asyncio.gather(*(self._write(engine, length) for length in lengths))
        else:
            await asyncio.sleep(0)
        self._load(engine, -request.samples)
        return [
            self._rollout(request, i, length, began, chance) for i, length in enumerate(lengths)
        ]

    async def _write(self, engine: int, length: int) -> None:
        async with self._free[engine]:
            await asyncio.sleep(length * self.token_s)

    def _load(self, engine: int, samples: int) -> None:
        self._samples[engine] += samples
        self._loads.set(engine, self._samples[engine])

    def _rollout(
        self, request: GenerationRequest, index: int, length: int, began: int, chance: random.Random
    ) -> Rollout:
        return Rollout(
            presentation_uid=request.presentation_uid,
            sample=index,
            seed=request.seed + index,
            token_ids=np.zeros(length, np.int32),
            logprobs=np.zeros(length, np.float32),
            text=TEXTS[chance.choice("AB")],
            finish_reason=FinishReason.STOP,
            weight_version_min=began,
            weight_version_max=self.version(),
        )


class SimulatedPanel:
    """The verdict, at once."""

    def weights(self, *_: Any) -> dict[str, float]:
        return {"verdict": 1.0}

    def describe(self, *_: Any) -> list[Any]:
        return []

    async def restarts(self) -> int:
        return 0

    async def check_failures(self, *_: Any) -> None:
        return None

    async def score(self, unit: Sequence[Any], _: Any) -> list[Group]:
        return [self._group(presentation, rollouts) for presentation, rollouts in unit]

    def _group(self, presentation: Presentation, rollouts: Sequence[Rollout]) -> Group:
        judgments = tuple(Judgment(presentation, r, TRACES[r.text]) for r in rollouts)
        results = tuple(
            RewardResult(presentation.uid, score=1.0 if judgment.is_correct else -1.0)
            for judgment in judgments
        )
        return Group(presentation.uid, judgments, results)


@dataclass(slots=True)
class SimulatedLearners:
    step_s: float = 0.0
    restarts: int = 0

    async def begin_reinforce(self, *_: Any) -> None:
        return None

    async def policy_step(self, _: Any) -> dict[str, float]:
        await asyncio.sleep(self.step_s)
        return {"loss": 0.0}

    async def save(self, _: Any) -> None:
        return None


@dataclass(slots=True)
class SimulatedPublisher:
    version: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def updating(self) -> asyncio.Lock:
        return self.lock

    async def publish(self) -> Any:
        self.version += 1
        return SimpleNamespace(probe_gap=0.0)


def simulated_run(tree: dict[str, Any], fleet: SimulatedFleet, step_s: float, **parts: Any) -> Run:
    """A run with a phase of reinforcement; `parts` are its directory, journal and telemetry."""
    config = config_from_tree(tree)
    publisher = SimulatedPublisher()
    fleet.version = lambda: publisher.version
    simulated: dict[str, Any] = {
        "learners": SimulatedLearners(step_s),
        "fleet": fleet,
        "panel": SimulatedPanel(),
        "commands": SimpleNamespace(apply=_nothing),
        "publisher": publisher,
        "position": Position(),
        "stop": StopRequest(math.inf, say=print),
    }
    return Run(config=config, material=material(config), **simulated, **parts)


def material(config: RunConfig, pairs: int = 4096) -> Material:
    return Material("", (), tuple(_pairs(pairs)), (), {}, ())


def _pairs(count: int) -> Iterator[PairPrompts]:
    for number in range(count):
        question = (Message("user", f"question {number}"),)
        pair = PreferencePair(f"{number:016x}", question, "right", "wrong")
        shown = [Presentation(pair, order) for order in ("chosen_first", "rejected_first")]
        tokens = tuple(range(100, 164))
        yield PairPrompts(pair, {p.order: JudgePrompt(p, question, tokens) for p in shown})


async def _nothing(*_: Any) -> None:
    return None


class Records:
    """Stands in for directory, journal and telemetry; keeps the metrics."""

    path = Path()

    def __init__(self, clock: Callable[[], float]) -> None:
        self.steps: list[dict[str, float]] = []
        self.ended_at_s: list[float] = []
        self._clock = clock

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: Context()

    def step(self, _: int, metrics: dict[str, float]) -> None:
        self.steps.append(metrics)
        self.ended_at_s.append(self._clock())

    def open_units(self, _: int) -> dict[int, str]:
        return {}

    def checkpoint_name(self, _: int) -> str:
        raise PhaseOver


class PhaseOver(Exception):
    """All steps are done; there is no checkpoint to write."""


class Context:
    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        return None
