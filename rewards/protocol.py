"""What a reward is, for those who write one and for the host that runs it.

A reward scores batches of judgments and answers one typed result for each. It owns nothing that can
go wrong around it: deadlines, batching, order, retries and checks are the host's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from judging.records import Letter, Message, Trace

API_VERSION = 1
Status = Literal["ok", "error", "timeout", "skipped"]
Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """What a reward says of itself."""

    name: str
    version: str = "1"  # part of the cache's key: raise it when scores change
    api_version: int = API_VERSION
    deterministic: bool = True  # equal requests have equal scores, so that they may be kept
    max_batch: int = 64  # requests in one call of `score`
    range: tuple[float, float] = (-1.0, 1.0)  # lowest and highest score


@dataclass(frozen=True, slots=True)
class SwappedJudgment:
    """A judgment of the same pair with the answers in the other order, sampled beside this one."""

    gold: Letter
    response: str
    trace: Trace


@dataclass(frozen=True, slots=True)
class RewardRequest:
    """One judgment to be scored, with the answers in the order the judge saw them."""

    id: str
    conversation: tuple[Message, ...]
    answer_a: str
    answer_b: str
    gold: Letter
    response: str
    trace: Trace
    swapped: SwappedJudgment | None = None  # where both orders are judged (reward.order: both)
    # source and category of the pair; response_tokens, max_new_tokens and truncated of the sample
    metadata: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RewardResult:
    """The outcome for one request; `score` is set exactly when `status` is "ok".

    "skipped" says that the reward does not apply to the request, "error" and "timeout" that it
    failed. None of the three is a number, and none is counted as one.
    """

    id: str
    status: Status = "ok"
    score: float | None = None
    components: Mapping[str, float] = field(default_factory=dict)  # recorded as metrics
    info: Mapping[str, Json] = field(default_factory=dict)  # recorded with the judgment
    error: str | None = None


@runtime_checkable
class Reward(Protocol):
    """Scores batches of judgments."""

    def spec(self) -> RewardSpec: ...

    async def score(self, batch: Sequence[RewardRequest]) -> Sequence[RewardResult]:
        """One result per request, matched by `id`."""
        ...

    async def close(self) -> None: ...
