"""How fast a service may be asked: rates, pauses that it asks for, and how much at a time.

How many requests are in flight adapts as in TCP (Jacobson 1988): it doubles in each round of
answers until the service is overloaded for the first time, falls to 0.7 of what it was (RFC 9438)
whenever it is overloaded, and grows by one in each round after that.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

START = 8  # requests in flight
_CUT = 0.7
_FIRST_BACKOFF_S = 0.5
_LONGEST_STEP_S = 1.0  # of one sleep, so that a rate that is corrected is noticed
_TINY = 1e-9  # what sums of fractions may be off by, as a share or in seconds


@dataclass(slots=True)
class Taken:
    """Of a rate, at a time."""

    at_s: float
    amount: float


class Rate:
    """So many a minute: in no 60 s more than that, and spread over them.

    A token bucket of one second's worth spreads what is taken, but lets that second's worth
    through on top of the rate. So what was taken within the last minute is remembered as well.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float]) -> None:
        self._most, self._window_s = max(1.0, per_minute), max(1.0, 1 / per_minute) * 60
        self._per_s, self._clock = per_minute / 60, clock
        self._level, self._at_s = self._room, clock()
        self._taken: deque[Taken] = deque()
        self._sum = 0.0  # of these

    def wait_s(self, amount: float) -> float:
        """Until so much may be taken; 0: now. More than there ever is, may be taken alone."""
        self._pass()
        excess, window_s = self._sum + amount - self._most, 0.0
        for taken in self._taken:
            if excess <= _TINY * self._most:
                break
            excess -= taken.amount
            window_s = taken.at_s + self._window_s - self._at_s
        spread_s = -self._level / self._per_s
        return max(0.0, window_s, spread_s if spread_s > _TINY else 0.0)

    def take(self, amount: float) -> Taken:
        """More than the bucket holds, too: the next one then waits for all of it."""
        self._pass()
        self._level -= amount
        self._sum += amount
        self._taken.append(taken := Taken(self._at_s, amount))
        return taken

    def correct(self, taken: Taken, amount: float) -> None:
        """It was so much, as is known now."""
        self._pass()
        more = amount - taken.amount
        self._level = min(self._room, self._level - more)
        if taken.at_s + self._window_s > self._at_s:
            self._sum += more
        taken.amount = amount

    @property
    def _room(self) -> float:
        return max(1.0, self._per_s)

    def _pass(self) -> None:
        now_s = self._clock()
        self._level = min(self._room, self._level + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        while self._taken and self._taken[0].at_s + self._window_s <= now_s:
            self._sum -= self._taken.popleft().amount
        if not self._taken:
            self._sum = 0.0  # exactly


class Pace:
    """Of one service. Lives in one event loop."""

    def __init__(
        self,
        *,
        max_in_flight: int,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        clock: Callable[[], float],
        sleep: Callable[[float], object] = asyncio.sleep,
    ) -> None:
        self._most, self._clock, self._sleep = max_in_flight, clock, sleep
        self.limit = float(min(START, max_in_flight))
        self.in_flight = 0
        self._is_starting = True  # no overload yet
        self._requests = Rate(requests_per_minute, clock) if requests_per_minute else None
        self._tokens = Rate(tokens_per_minute, clock) if tokens_per_minute else None
        self._paused_until_s = self._cut_at_s = float("-inf")
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._turn = asyncio.Lock()  # who waits for rates and pauses, one after another

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Room for one request; `take` within it, right before it is sent."""
        await self._room()
        try:
            yield
        finally:
            self.in_flight -= 1
            self._wake()

    async def take(self, tokens: float) -> Taken | None:
        """Waits until a request of about so many tokens may be sent; answers what to `correct`."""
        async with self._turn:
            while (wait_s := self._wait_s(tokens)) > 0:
                await self._sleep(min(wait_s, _LONGEST_STEP_S))  # pyright: ignore[reportGeneralTypeIssues]
            if self._requests is not None:
                self._requests.take(1.0)
            return None if self._tokens is None else self._tokens.take(tokens)

    def correct(self, taken: Taken | None, tokens: float) -> None:
        """A request has used so many."""
        if self._tokens is not None and taken is not None:
            self._tokens.correct(taken, tokens)

    def succeeded(self) -> None:
        self.limit = min(self._most, self.limit + (1.0 if self._is_starting else 1 / self.limit))
        self._wake()

    def overloaded(self, began_s: float, retry_after_s: float | None) -> None:
        """The service says so to a request that was sent at `began_s`. Requests that were sent
        before the last cut say nothing new."""
        if retry_after_s is not None:
            self._paused_until_s = max(self._paused_until_s, self._clock() + retry_after_s)
        if began_s > self._cut_at_s:
            self.limit, self._is_starting = max(1.0, self.limit * _CUT), False
            self._cut_at_s = self._clock()

    async def _room(self) -> None:
        while self.in_flight >= int(self.limit):
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                self._wake()  # whoever would have been next
                raise
        self.in_flight += 1

    def _wake(self) -> None:
        free = int(self.limit) - self.in_flight
        while free > 0 and self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                free -= 1

    def _wait_s(self, tokens: float) -> float:
        return max(
            self._paused_until_s - self._clock(),
            self._requests.wait_s(1.0) if self._requests else 0.0,
            self._tokens.wait_s(tokens) if self._tokens else 0.0,
        )


def backoff_s(failures: int, longest_s: float, rng: random.Random) -> float:
    """Before the next try, after so many that failed: doubled each time, and spread."""
    return min(longest_s, _FIRST_BACKOFF_S * 2 ** (failures - 1)) * rng.uniform(0.5, 1.0)
