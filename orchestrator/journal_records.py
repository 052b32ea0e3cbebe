"""What the journal holds, as records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rewards.protocol import Json


@dataclass(frozen=True, slots=True)
class StepCommit:
    """One finished optimizer step (distill) or rollout step (reinforce)."""

    phase: int  # index of the phase in the run
    kind: str  # of the phase
    step: int  # within the phase, from 1
    weight_version: int  # of the weights after the step
    consumed: tuple[str, ...]  # uids trained on, one entry for each time
    drawn: int  # units of data that the phase took up to this step, those it dropped included
    metrics: Mapping[str, float]
    batch_hash: str | None  # of the file that holds the step's batch
    committed_at_s: float  # wall clock, Unix time


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint: weights and trainer state after `steps` training steps of the run."""

    path: str  # relative to the run's directory
    steps: int
    phase: int  # index of the phase
    phase_step: int  # steps of that phase
    at_s: float  # wall clock, Unix time


@dataclass(frozen=True, slots=True)
class Best:
    """The checkpoint whose weights were measured to be the best so far."""

    path: str  # relative to the run's directory
    steps: int
    by: str  # what was measured, as checkpoint.best_by
    score: float


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """What the journal knows of a run at one moment; None: not yet."""

    run_id: str
    status: str  # "running", or what the run finished as
    seed: int
    config_yaml: str
    versions: Mapping[str, str]
    started_at_s: float
    finished_at_s: float | None
    phase: int | None
    kind: str | None
    total_steps: int | None  # of the current phase, if it is known
    step: int  # last committed one of the current phase
    weight_version: int
    committed_at_s: float | None
    metrics: Mapping[str, float]  # of the last commit
    evaluations: tuple[Mapping[str, Json], ...] = field(default=())  # in the order they were made
    checkpoints: tuple[Mapping[str, Json], ...] = field(default=())
    best: Mapping[str, Json] | None = None  # a `Best`
    events: tuple[Mapping[str, Json], ...] = field(default=())  # the last few, oldest first


@dataclass(frozen=True, slots=True)
class Command:
    """What somebody asks of a running run."""

    id: str
    verb: str  # of a reward: attach, detach or weight; of workers: add
    name: str  # of the reward in the mix
    arguments: Mapping[str, Any]
    asked_at_s: float  # wall clock, Unix time
    subject: str = "reward"  # or workers
