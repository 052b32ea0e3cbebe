"""Settings of rewards: how each is called, and how they are mixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval
from pydantic import TypeAdapter, ValidationError

from judging.errors import ConfigurationError

PositiveInt = Annotated[int, Gt(0)]
PositiveFloat = Annotated[float, Gt(0.0)]
Mode = Literal["train", "shadow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ramp:
    """A weight that moves on a straight line over a share of each phase, then stays."""

    start: float
    end: float
    until: Annotated[float, Interval(gt=0.0, le=1.0)] = 1.0  # share of the phase's steps


def weight_at(weight: float | Ramp, progress: float) -> float:
    """The weight at this share of a phase's steps."""
    if not isinstance(weight, Ramp):
        return weight
    return weight.start + (weight.end - weight.start) * min(1.0, progress / weight.until)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """How the host calls one reward."""

    timeout_s: PositiveFloat = 60.0  # until a judgment has its score, queue and retries included
    call_timeout_s: PositiveFloat = 15.0  # of one call of the reward
    concurrency: PositiveInt = 1  # calls at once; for import: processes
    retries: Annotated[int, Ge(0)] = 2  # of a call that failed and may succeed later
    backoff_s: PositiveFloat = 0.5  # before the first retry, doubled with each
    breaker_failures: PositiveInt = 5  # calls failed in a row after which none is made for a while
    breaker_reset_s: PositiveFloat = 30.0
    cache_entries: Annotated[int, Ge(0)] = 100_000  # scores kept of a deterministic reward
    memory_mib: PositiveInt = 2048  # import: of one process
    cpus: PositiveInt = 1  # import: cores of one process
    gpus: Annotated[float, Ge(0.0)] = 0.0  # of the verifier actor that the reward is placed in
    token_env: str | None = None  # https: the environment variable that holds the bearer token


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardUse:
    """One reward of the mix."""

    uses: str  # builtin:NAME, import:package.module:Object, ray://NAMESPACE/ACTOR, https://...
    weight: float | Ramp = 1.0
    mode: Mode = "train"  # shadow: recorded only
    options: Mapping[str, Any] = field(default_factory=dict)  # of a built-in or an import
    call: CallSettings = field(default_factory=CallSettings)


def parse_reward_use(arguments: Mapping[str, Any]) -> RewardUse:
    """Raises ConfigurationError for keys and values that no reward of a mix has."""
    try:
        return TypeAdapter(RewardUse).validate_python(dict(arguments), extra="forbid")
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"reward: {key}: {first['msg']}") from None
