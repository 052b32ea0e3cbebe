"""A running run: its parts, and how far it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from actors.fleet import RolloutFleet
from actors.learner_group import LearnerGroup
from actors.publisher import WeightPublisher
from orchestrator.commands import Commands
from orchestrator.config import RunConfig
from orchestrator.journal import RunJournal
from orchestrator.journal_records import StepCommit
from orchestrator.material import Material
from orchestrator.measurements import EvaluatedPhase, Evaluation
from orchestrator.position import Position
from orchestrator.reward_panel import RewardPanel
from orchestrator.rundir import RunDirectory
from orchestrator.stopping import StopRequest
from orchestrator.telemetry import Telemetry


@dataclass(slots=True)
class Run:
    config: RunConfig
    directory: RunDirectory
    material: Material
    learners: LearnerGroup
    fleet: RolloutFleet
    panel: RewardPanel
    commands: Commands
    publisher: WeightPublisher
    journal: RunJournal
    telemetry: Telemetry
    stop: StopRequest
    position: Position = field(default_factory=Position)  # where this driver took the run up
    evaluations: list[Evaluation] = field(default_factory=list)
    trained: EvaluatedPhase = "base"  # the last training phase
    steps: int = 0  # training steps of all phases
    checkpoint: str | None = None  # the newest one
    committed: StepCommit | None = None  # the newest step of this driver
    # Prepares fresh learners for the phase that goes on.
    begin_on_learners: Callable[[], Awaitable[None]] | None = None
