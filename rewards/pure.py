"""What the built-in rewards have in common: they compute, and wait for nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from rewards.protocol import RewardRequest, RewardResult, RewardSpec


class PureReward(ABC):
    """A reward whose score is computed from the request at once."""

    @abstractmethod
    def spec(self) -> RewardSpec: ...

    @abstractmethod
    def score_one(self, request: RewardRequest) -> RewardResult: ...

    async def score(self, batch: Sequence[RewardRequest]) -> Sequence[RewardResult]:
        return [self.score_one(request) for request in batch]

    async def close(self) -> None:
        """Nothing is held."""
        return
