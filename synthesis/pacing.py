"""How fast a service may be asked: rates, pauses that it asks for, and how much at a time.

Rates are token buckets that hold one second's worth. How many requests are in flight adapts as in
TCP (Jacobson 1988): it doubles in each round of answers until the service is overloaded for the
first time, falls to 0.7 of what it was (RFC 9438) whenever it is overloaded, and grows by one in
each round after that.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

START = 8  # requests in flight
_CUT = 0.7
_FIRST_BACKOFF_S = 0.5
_LONGEST_STEP_S = 1.0  # of one sleep, so that a rate that is corrected is noticed


class Bucket:
    """A rate of so many a minute; `take` may be corrected by `give_back` when more is known."""

    def __init__(self, per_minute: float, clock: Callable[[], float]) -> None:
        self._per_s, self._clock = per_minute / 60, clock
        self._room = max(1.0, self._per_s)
        self._level, self._at_s = self._room, clock()

    def wait_s(self) -> float:
        """Until something may be taken; 0: now."""
        self._fill()
        return max(0.0, -self._level / self._per_s) if self._level <= 0 else 0.0

    def take(self, amount: float) -> None:
        """More than there is, too: the next one then waits for all of it."""
        self._fill()
        self._level -= amount

    def give_back(self, amount: float) -> None:
        self._level = min(self._room, self._level + amount)

    def _fill(self) -> None:
        now_s = self._clock()
        self._level = min(self._room, self._level + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s


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
        self._requests = Bucket(requests_per_minute, clock) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute, clock) if tokens_per_minute else None
        self._paused_until_s = self._cut_at_s = float("-inf")
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def slot(self, tokens: float) -> AsyncIterator[None]:
        """Room for one request of about so many tokens."""
        await self._room()
        try:
            await self._rates(tokens)
            yield
        finally:
            self.in_flight -= 1
            self._wake()

    def correct(self, tokens: float, used: float) -> None:
        """A request that was thought to take `tokens` has `used` so many."""
        if self._tokens is not None:
            self._tokens.give_back(tokens - used)

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

    async def _rates(self, tokens: float) -> None:
        while (wait_s := self._wait_s()) > 0:
            await self._sleep(min(wait_s, _LONGEST_STEP_S))  # pyright: ignore[reportGeneralTypeIssues]
        for bucket, amount in ((self._requests, 1.0), (self._tokens, tokens)):
            if bucket is not None:
                bucket.take(amount)

    def _wait_s(self) -> float:
        buckets = [bucket.wait_s() for bucket in (self._requests, self._tokens) if bucket]
        return max([self._paused_until_s - self._clock(), *buckets])


def backoff_s(failures: int, longest_s: float, rng: random.Random) -> float:
    """Before the next try, after so many that failed: doubled each time, and spread."""
    return min(longest_s, _FIRST_BACKOFF_S * 2 ** (failures - 1)) * rng.uniform(0.5, 1.0)
