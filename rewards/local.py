"""Rewards in this very process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from rewards.backend import CallFailed
from rewards.protocol import Reward, RewardRequest, RewardSpec
from rewards.wire import WireError, spec_from_json


class LocalBackend:
    """A reward object as it is, in this process; for authors' tests and the built-ins."""

    lanes = 1

    def __init__(self, reward: Reward) -> None:
        self._reward = reward

    async def open(self, timeout_s: float) -> RewardSpec:
        try:
            return spec_from_json(self._reward.spec())
        except WireError as error:
            raise CallFailed("fault", str(error)) from None

    async def score(
        self, lane: int, batch: Sequence[RewardRequest], timeout_s: float
    ) -> Sequence[Any]:
        try:
            answers = await asyncio.wait_for(self._reward.score(batch), timeout_s)
        except TimeoutError:
            raise CallFailed("timeout", f"no answer within {timeout_s:g} s") from None
        except Exception as error:
            raise CallFailed("fault", f"{type(error).__name__}: {error}") from error
        if not isinstance(answers, Sequence) or isinstance(answers, str):
            raise CallFailed("fault", f"score answered a {type(answers).__name__}, not a list")
        return answers

    async def close(self) -> None:
        await self._reward.close()
