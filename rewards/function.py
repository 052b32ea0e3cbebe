"""`@reward`: a reward from a function of one request."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from rewards.protocol import RewardRequest, RewardResult, RewardSpec

Value = float | RewardResult | None
Function = Callable[[RewardRequest], Value | Awaitable[Value]]


class FunctionReward:
    """A function as a reward; what it raises for one request is that request's error alone."""

    def __init__(self, function: Function, spec: RewardSpec) -> None:
        self._function, self._spec = function, spec
        self.__doc__ = function.__doc__

    def __call__(self, request: RewardRequest) -> Any:
        """The function itself, for tests of it."""
        return self._function(request)

    def spec(self) -> RewardSpec:
        return self._spec

    async def score(self, batch: Sequence[RewardRequest]) -> Sequence[RewardResult]:
        return list(await asyncio.gather(*(self.score_one(request) for request in batch)))

    async def score_one(self, request: RewardRequest) -> RewardResult:
        try:
            value = self._function(request)
            if inspect.isawaitable(value):
                value = await value
        except Exception as error:
            return RewardResult(request.id, "error", error=f"{type(error).__name__}: {error}")
        if isinstance(value, RewardResult):
            return value
        if value is None:
            return RewardResult(request.id, "skipped")
        if not isinstance(value, int | float):
            kind = type(value).__name__
            return RewardResult(request.id, "error", error=f"answered a {kind}, not a number")
        return RewardResult(request.id, score=float(value))

    async def close(self) -> None:
        """A function holds nothing."""


def reward(
    function: Function | None = None,
    *,
    name: str | None = None,
    version: str = "1",
    deterministic: bool = True,
    max_batch: int = 64,
    range: tuple[float, float] = (-1.0, 1.0),
) -> Any:
    """Makes a reward of a plain or async function of one `RewardRequest`.

    The function answers a number, None where it does not apply, or a `RewardResult` of its own.

        @reward(range=(0.0, 1.0))
        def brevity(request: RewardRequest) -> float:
            return 1.0 if len(request.response) < 2000 else 0.0
    """

    def made(function: Function) -> FunctionReward:
        spec = RewardSpec(
            name or function.__name__,
            version=version,
            deterministic=deterministic,
            max_batch=max_batch,
            range=range,
        )
        return FunctionReward(function, spec)

    return made if function is None else made(function)
