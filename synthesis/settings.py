"""Settings of a synthesis: who writes the traces, in which passes, and what they may cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from judging.verification import TraceChecks

PositiveInt = Annotated[int, Gt(0)]
PositiveFloat = Annotated[float, Gt(0.0)]
NonNegative = Annotated[float, Ge(0.0)]
Share = Annotated[float, Interval(gt=0.0, le=1.0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """Who writes traces.

    `uses` is one of: `openai`, an endpoint that speaks OpenAI's chat completions; `openai-batch`
    and `anthropic-batch`, the batch interfaces of these two; `engines`, a model on rollout workers
    of the run; `policy`, the run's own weights as they are; `builtin:quickstart`; and
    `import:package.module:Object`, a function of one `TeacherRequest` or a class of such ones.
    """

    uses: str
    model: str | None = None  # its name at the service; of engines a folder or an id on the hub
    base_url: str | None = None  # None: the service's own
    # The environment variable that holds the key; None: the service's usual one, or none for a
    # base_url without it.
    api_key_env: str | None = None
    temperature: NonNegative | None = None  # None: 1.0
    max_new_tokens: PositiveInt = 8192
    parameters: Mapping[str, Any] = field(default_factory=dict)  # more of the request's body
    # Whether what a reasoning model thought is a part of its trace, before </think>.
    keep_reasoning: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)  # of a built-in or an import
    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None  # prompts and completions together
    max_in_flight: PositiveInt = 64  # requests at a time; fewer where the service is overloaded
    timeout_s: PositiveFloat = 600.0  # of one try
    max_tries: PositiveInt = 8  # of a request that fails and may succeed later
    max_backoff_s: PositiveFloat = 60.0  # between two tries, unless the service asks for longer
    batch_requests: PositiveInt = 10_000  # in one batch
    batches_at_a_time: PositiveInt = 4
    batch_gather_s: PositiveFloat = 5.0  # until a batch that is not full is sent
    batch_poll_s: PositiveFloat = 30.0
    batch_timeout_s: PositiveFloat = 90_000.0  # the services end a batch after 24 h


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One round in which a teacher is asked about the pairs that have no trace yet."""

    teacher: str
    # Whether the teacher is shown the gold verdict and the trace that failed in the passes before.
    tells_verdict: bool = False
    template: str | None = None  # None: judge.template, or `corrected` where the verdict is told
    samples: PositiveInt = 1  # of each presentation
    temperature: NonNegative | None = None  # None: the teacher's


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Of one model."""

    input_usd_per_million: NonNegative
    output_usd_per_million: NonNegative
    cached_input_usd_per_million: NonNegative | None = None  # None: as other input
    batch_discount: Annotated[float, Interval(ge=0.0, le=1.0)] = 0.5  # off, of the batch interfaces


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesizeSettings:
    """A phase of synthesis."""

    teachers: Mapping[str, Teacher] = field(default_factory=dict)
    passes: tuple[Pass, ...] = ()
    of: Literal["distill", "reinforce"] = "distill"  # the part of the pairs that is asked about
    pairs: PositiveInt | None = None  # at most so many of them; None: all
    # balanced: each pair in the order that seed and pair decide; both: a pair counts only if its
    # traces are right in both orders, and gives both.
    order: Literal["balanced", "both"] = "balanced"
    # Of the samples that may be imitated. reward: the one that reward.mix scores highest.
    keep: Literal["first", "shortest", "reward", "all"] = "first"
    checks: TraceChecks = field(default_factory=TraceChecks)
    max_nonsense: Share = 0.5  # of a teacher's first answers, without a verdict; above it stops
    nonsense_window: Annotated[int, Ge(0)] = 100  # the first so many; more are sent only after them
    prices: Mapping[str, Price] | None = None  # by model; None: costs are not counted
    max_cost_usd: PositiveFloat | None = None  # the phase ends before it costs more
    max_requests: PositiveInt | None = None  # tries included
    cache: str | None = None  # folder of answers that runs share
    format: Literal["jsonl", "parquet"] = "jsonl"

    @property
    def used(self) -> dict[str, Teacher]:
        """The teachers that the passes name."""
        named = {each.teacher for each in self.passes}
        return {name: each for name, each in self.teachers.items() if name in named}

    @property
    def asks_policy(self) -> bool:
        return any(teacher.uses == "policy" for teacher in self.used.values())
