"""What a reward is, for those who write one and for the host that runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from judging.records import Letter, Message, Trace

API_VERSION = 1
Status = Literal["ok", "error", "timeout", "skipped"]
Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]


@dataclass(frozen=True, slots=True)
class RewardSpec:
    name: str
    version: str = "1"
    api_version: int = API_VERSION
    deterministic: bool = True
    max_batch: int = 64  # requests in one call of `score`
    range: tuple[float, float] = (-1.0, 1.0)  # lowest and highest score


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
    metadata: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RewardResult:
    """The outcome for one request; `score` is set exactly when `status` is "ok"."""

    id: str
    status: Status = "ok"
    score: float | None = None
    components: Mapping[str, float] = field(default_factory=dict)
    info: Mapping[str, Json] = field(default_factory=dict)
    error: str | None = None


class Reward(Protocol):
    """Scores batches of judgments."""

    def spec(self) -> RewardSpec: ...

    async def score(self, batch: Sequence[RewardRequest]) -> Sequence[RewardResult]:
        """One result per request, matched by `id`."""
        ...

    async def close(self) -> None: ...
