"""The configuration of a run: one typed tree, and nothing that acts on it.

Owns the sections, their defaults and the shape of a phase. The settings of learners and actors
are those packages' own. What two keys must not say together is in `config_rules`; files,
`extends:` and overrides are in `config_loading`. Imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    NonNegativeInt,
    model_validator,
)
from pydantic_core import core_schema

from actors.settings import Deadlines, PlacementSettings, PublicationSettings, RolloutSettings
from actors.urls import Place, place_of
from evaluation.items import Benchmark
from judging.duplicates import SIMILARITY
from judging.mixing import Source
from judging.quickstart import QuickstartTask
from learning.settings import (
    DistillSettings,
    Dtype,
    Fraction,
    GrpoSettings,
    LearnerSettings,
    PositiveFloat,
    PositiveInt,
)
from learning.tiny import TinyModel
from orchestrator.phase_kinds import TRAINING, PhaseKind
from rewards.mix import Normalize
from rewards.settings import Ramp, RewardUse
from synthesis.settings import SynthesizeSettings

_PLACE = core_schema.no_info_after_validator_function(
    place_of, core_schema.str_schema(), serialization=core_schema.to_string_ser_schema()
)
BestBy = Literal["accuracy", "accuracy_first_order", "consistent_accuracy", Benchmark]


class Section(BaseModel):
    """A part of the tree: frozen, and without room for unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunSection(Section):
    """Which run this is and where it is kept."""

    id: str | None = None  # None: the configuration's name and the time
    # The run's own directory is a folder in it: a folder, or a URL (s3://, gs://, file://).
    dir: Annotated[Place, GetPydanticSchema(lambda kind, handler: _PLACE)] = Path("runs")
    seed: Annotated[int, Field(ge=0)] = 1


class ModelSection(Section):
    """The model to begin with: exactly one of `path` and `make`."""

    path: str | None = None  # folder, id on the Hugging Face hub, or URL as of run.dir
    make: TinyModel | None = None  # made from random weights when the run starts
    dtype: Dtype = "bf16"
    revision: str | None = None  # of a hub id
    trust_remote_code: bool = False
    context_tokens: PositiveInt | None = None  # None: longest prompt and completion together


class DataSection(Section):
    """The preference pairs: exactly one of `path`, `sources` and `generate`.

    What is said of `path` below goes for the mix of `sources` too.
    """

    path: str | None = None  # file or folder of pairs for training
    sources: Mapping[str, Source] | None = None  # by name: several, mixed
    # Of the mix: pairs of which conversation and answers are each alike from this Jaccard index of
    # runs of 5 words on are left out but for the first; null keeps them.
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = SIMILARITY
    generate: QuickstartTask | None = None  # problems made when the run starts
    distill_path: str | None = None  # pairs with traces; then all of `path` is for reinforcement
    heldout_path: str | None = None  # pairs for evaluation; then none of `path` is held out
    distill_fraction: Fraction = 0.12  # of `path`; RM-R1 takes "slightly under 9k" of 73k
    heldout_fraction: Fraction = 0.05  # of `path`
    max_prompt_tokens: PositiveInt = 4096  # pairs with longer prompts are left out and counted
    limit: PositiveInt | None = None  # the first so many of `path` after a seeded shuffle
    # What becomes of training pairs that repeat text of evaluation: the held-out pairs, the
    # benchmarks in evaluate.data, and what is at `overlap_with`, folders of benchmarks and folders
    # or files of pairs.
    overlap: Literal["report", "drop", "ignore"] = "report"
    overlap_with: tuple[str, ...] = ()


class JudgeSection(Section):
    """How a pair is shown to the model and how its verdict is read."""

    template: str = "instruct"  # instruct, reasoning, compact, or the path of a .jinja file
    strict_tail: bool = False  # read the verdict by RM-R1's rule, from the last 80 characters


class RewardSection(Section):
    """What a judgment is worth: a mix of rewards, each under a name of its own."""

    mix: dict[str, RewardUse] = {"verdict": RewardUse(uses="builtin:verdict")}
    normalize: Normalize = "sum"  # each: every reward within its group before it is weighted
    # balanced: each pair in a seeded order that turns with every epoch; random: drawn anew in each
    # epoch; both: the two orders of a pair are judged in one step and scored as one unit
    order: Literal["balanced", "random", "both"] = "balanced"
    min_samples: PositiveInt = 2  # scored ones; a group with fewer is replaced
    max_failure_rate: Fraction = 0.1  # of a step's judgments; above it the run stops
    allowed_hosts: tuple[str, ...] = ()  # that rewards by https:// may be at


class VerifierSection(Section):
    """The actors that parse and score."""

    workers: PositiveInt = 1
    max_restarts: NonNegativeInt = 3  # of each, when it died; beyond it the run stops


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforceSettings(GrpoSettings):
    """A phase of reinforcement: the learners' part, what the rewards weigh in it, and how far
    generation may run ahead of training."""

    # Steps that the weights may be ahead of a sample when it is trained on. 0: synchronous and
    # on-policy; 1 and more: generation goes on while the learners train.
    max_staleness: NonNegativeInt = 0
    # Prompts that are generated, waiting or trained on at a time; None: as many as will be fresh.
    max_open_prompts: PositiveInt | None = None
    # Over the weights of reward.mix, by name.
    reward_weights: Mapping[str, float | Ramp] = field(default_factory=dict)


class EvaluateSettings(Section):
    """Greedy judging in both orders, of the held-out pairs and of public benchmarks."""

    pairs: PositiveInt | None = None  # held out, at most so many; None: all
    max_new_tokens: PositiveInt | None = None  # None: rollout.max_new_tokens
    benchmarks: tuple[Benchmark, ...] = ()
    data: str | None = None  # folder of the benchmarks' files; None: the Hugging Face hub
    items: PositiveInt | None = None  # of each benchmark, drawn by run.seed; None: all
    # Of a training phase, after which the weights are evaluated too; None: only where phases says.
    every_steps: PositiveInt | None = None


class StoreSection(Section):
    """The Redis server that holds the journal."""

    url: str | None = None  # redis:// or rediss://; None: a private server of the run
    prefix: Annotated[str, Field(pattern=r"^[\w.:-]+$")] = "gavel"  # of the keys, <prefix>:{<run>}:
    patience_s: Annotated[float, Field(ge=0)] = (
        120.0  # for a store that fails while the run goes on
    )


class CheckpointSection(Section):
    """When checkpoints are written; the end of a phase always writes one."""

    every_steps: PositiveInt | None = 20  # None: only at the ends of phases
    keep: PositiveInt = 2  # of those written within phases
    # What the evaluations measured, the more the better: the best checkpoint is kept as well.
    best_by: BestBy | None = None
    # Judgments that no step has used yet are written down about as often.
    open_work_every_s: PositiveFloat = 30.0


class OutputSection(Section):
    """What a person sees while the run goes on."""

    tensorboard: bool = True
    samples: Annotated[int, Field(ge=0)] = 4  # judgments in one table; 0: no tables
    samples_every_steps: PositiveInt = 10
    progress: Literal["auto", "bars", "lines", "quiet"] = "auto"
    # Of loopback, for GET /health: whether the run gets on. None: there is none.
    health_port: Annotated[int, Field(ge=1, le=65535)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesizePhase:
    settings: SynthesizeSettings
    kind: Literal["synthesize"] = "synthesize"


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillPhase:
    settings: DistillSettings
    kind: Literal["distill"] = "distill"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReinforcePhase:
    settings: ReinforceSettings
    kind: Literal["reinforce"] = "reinforce"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatePhase:
    settings: EvaluateSettings
    kind: Literal["evaluate"] = "evaluate"


# One phase with the settings it runs under: its section's, with its own overrides.
Phase = SynthesizePhase | DistillPhase | ReinforcePhase | EvaluatePhase


class RunConfig(Section):
    """All that a run is told; valid in itself, whatever machine it will run on."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    judge: JudgeSection = JudgeSection()
    reward: RewardSection = RewardSection()
    rollout: RolloutSettings = RolloutSettings()
    verifier: VerifierSection = VerifierSection()
    learner: LearnerSettings = LearnerSettings()
    placement: PlacementSettings = PlacementSettings()
    synthesize: SynthesizeSettings = SynthesizeSettings()
    distill: DistillSettings = DistillSettings()
    reinforce: ReinforceSettings = ReinforceSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    publication: PublicationSettings = PublicationSettings()
    deadlines: Deadlines = Deadlines()
    store: StoreSection = StoreSection()
    checkpoint: CheckpointSection = CheckpointSection()
    output: OutputSection = OutputSection()
    phases: tuple[Annotated[Phase, Field(discriminator="kind")], ...] = ()

    @property
    def completion_tokens(self) -> int:
        """The longest completion of any phase."""
        return max(self.completions.values())

    @property
    def completions(self) -> dict[str, int]:
        """The longest completion, in tokens, of each that asks the run's engines, by its key."""
        found = [("rollout.max_new_tokens", self.rollout.max_new_tokens)]
        for settings in self.evaluations:
            found.append(("evaluate.max_new_tokens", self.evaluation_tokens(settings)))
        for phase in self.phases:
            used = phase.settings.used if phase.kind == "synthesize" else {}
            for name, teacher in used.items():
                if teacher.uses == "policy":
                    key = f"synthesize.teachers.{name}.max_new_tokens"
                    found.append((key, teacher.max_new_tokens))
        return dict(sorted(found, key=itemgetter(1)))

    @property
    def context_tokens(self) -> int:
        """The longest sequence that engines and learners must hold."""
        return self.model.context_tokens or self.data.max_prompt_tokens + self.completion_tokens

    @property
    def trace_tokens(self) -> int:
        """The longest prompt and trace together that are distilled."""
        trained = self.data.max_prompt_tokens + self.rollout.max_new_tokens
        return self.distill.max_tokens or self.model.context_tokens or trained

    @property
    def evaluations(self) -> tuple[EvaluateSettings, ...]:
        """Of the phases that evaluate, and of what is evaluated within those that train."""
        of_phases = (phase.settings for phase in self.phases if phase.kind == "evaluate")
        within = [self.evaluate] if self.evaluate.every_steps and self.trains else []
        return (*of_phases, *within)

    @property
    def trains(self) -> bool:
        return any(phase.kind in TRAINING for phase in self.phases)

    @property
    def phases_ahead(self) -> int:
        """How many phases come before any that the run's learners and engines are needed for."""
        for index, phase in enumerate(self.phases):
            if phase.kind != "synthesize" or phase.settings.asks_policy:
                return index
        return len(self.phases)

    @property
    def is_driver_alone(self) -> bool:
        """Whether it does all phases, without learners and engines."""
        return bool(self.phases) and self.phases_ahead == len(self.phases)

    def syntheses_before(self, index: int) -> tuple[int, ...]:
        """The phases whose traces the phase of distillation at this index takes: those since the
        one before it; none where the data has traces of its own."""
        found: list[int] = []
        for earlier in reversed(range(index)):
            if self.phases[earlier].kind == "distill":
                break
            if self.phases[earlier].kind == "synthesize":
                found.append(earlier)
        return tuple(reversed(found))

    def evaluation_tokens(self, settings: EvaluateSettings) -> int:
        """The longest completion of an evaluation."""
        return settings.max_new_tokens or self.rollout.max_new_tokens

    def has_phase(self, kind: PhaseKind) -> bool:
        return any(phase.kind == kind for phase in self.phases)

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        from orchestrator.config_rules import contradictions

        if problems := contradictions(self):
            raise ValueError("\n".join(problems))
        return self
