"""The host of one reward: owns all that can go wrong around it.

Every request is answered, in order and in time, by a checked result. Requests of many groups wait
in one queue, from which lanes take batches; a batch that fails is tried again one by one, so that
one judgment that a reward cannot bear costs no other its score. Knows nothing of Ray or processes.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rewards.backend import START_TIMEOUT_S, Backend, CallFailed
from rewards.protocol import RewardRequest, RewardResult, RewardSpec
from rewards.settings import CallSettings
from rewards.wire import WireError, content_key, result_from_json


@dataclass(slots=True, eq=False)
class _Waiting:
    """One request and the promise of its result."""

    request: RewardRequest
    key: str | None  # in the cache
    result: asyncio.Future[RewardResult]
    attempts: int = 0
    alone: bool = False  # its batch has failed before


@dataclass(slots=True)
class Counts:
    """What a host has done, for reports and metrics."""

    scored: int = 0
    from_cache: int = 0
    calls: int = 0
    failures: Counter[str] = field(default_factory=Counter)  # requests, by status
    last_failure: str | None = None  # of a call
    last_error: str | None = None  # of a request


class RewardHost:
    """Life: construct, `open`, `score` from many tasks at once, `close`."""

    def __init__(
        self,
        backend: Backend,
        settings: CallSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend, self._settings = backend, settings
        self._breaker = Breaker(settings.breaker_failures, settings.breaker_reset_s, clock)
        self._cache: OrderedDict[str, RewardResult] = OrderedDict()
        self._queue: deque[_Waiting] = deque()
        self._filled = asyncio.Event()
        self._lanes: list[asyncio.Task[None]] = []
        self._later: set[asyncio.Task[None]] = set()
        self.spec = RewardSpec("unopened")
        self.counts = Counts()

    async def open(self) -> RewardSpec:
        """Reaches the reward and takes up work; raises `CallFailed`."""
        self.spec = await self._backend.open(self._settings.timeout_s)
        self._lanes = [asyncio.create_task(self._work(n)) for n in range(self._backend.lanes)]
        return self.spec

    async def close(self) -> None:
        for task in (*self._lanes, *self._later):
            task.cancel()
        await asyncio.gather(*self._lanes, *self._later, return_exceptions=True)
        await self._backend.close()

    async def score(self, requests: Sequence[RewardRequest]) -> list[RewardResult]:
        """One checked result per request, in order, within `timeout_s`. Never raises."""
        waiting = [self._enqueue(request) for request in requests]
        futures = {entry.result for entry in waiting}
        if futures:
            await asyncio.wait(futures, timeout=self._settings.timeout_s)
        return [self._answer(entry) for entry in waiting]

    # ---- the queue -----------------------------------------------------------------------------

    def _enqueue(self, request: RewardRequest) -> _Waiting:
        entry = _Waiting(request, None, asyncio.get_running_loop().create_future())
        if self.spec.deterministic and self._settings.cache_entries:
            entry.key = content_key(self.spec, request)
            if known := self._cache.get(entry.key):
                self._cache.move_to_end(entry.key)
                self.counts.from_cache += 1
                entry.result.set_result(replace(known, id=request.id))
                return entry
        self._put(entry)
        return entry

    def _put(self, entry: _Waiting, *, first: bool = False) -> None:
        (self._queue.appendleft if first else self._queue.append)(entry)
        self._filled.set()

    async def _take(self) -> list[_Waiting]:
        """The next batch; one that failed before comes alone."""
        while True:
            while not self._queue:
                self._filled.clear()
                await self._filled.wait()
            batch: list[_Waiting] = []
            while self._queue and len(batch) < self.spec.max_batch:
                if batch and self._queue[0].alone:
                    break
                entry = self._queue.popleft()
                if not entry.result.done():  # else nobody waits for it any more
                    batch.append(entry)
                    if entry.alone:
                        break
            if batch:
                return batch

    def _answer(self, entry: _Waiting) -> RewardResult:
        if not entry.result.done():
            self._finish(entry, self._failed(entry, "timeout", "no score in time"))
        result = entry.result.result()
        self.counts.scored += 1
        return result

    # ---- calls ---------------------------------------------------------------------------------

    async def _work(self, lane: int) -> None:
        while True:
            batch = await self._take()
            if not self._breaker.allows():
                message = f"not called after {self._breaker.failures} failures in a row"
                message = f"{message}; the last: {self.counts.last_failure}"
                for entry in batch:
                    self._finish(entry, self._failed(entry, "error", message))
                continue
            try:
                answers = await self._call(lane, batch)
                self._accept(batch, answers, missing="no result for it")
                self._breaker.succeeded()
            except CallFailed as failure:
                self._breaker.failed()
                self._settle(batch, failure)

    async def _call(self, lane: int, batch: Sequence[_Waiting]) -> Sequence[Any]:
        self.counts.calls += 1
        timeout_s = self._settings.call_timeout_s
        requests = [entry.request for entry in batch]
        try:
            call = self._backend.score(lane, requests, timeout_s)
            return await asyncio.wait_for(call, timeout_s + START_TIMEOUT_S)
        except CallFailed:
            raise
        except TimeoutError:
            raise CallFailed("timeout", f"no answer within {timeout_s:g} s") from None
        except Exception as error:  # a fault of the transport is one of the reward, too
            raise CallFailed("fault", f"{type(error).__name__}: {error}") from error

    def _settle(self, batch: Sequence[_Waiting], failure: CallFailed) -> None:
        """Keeps what was answered; tries the rest again where that may help."""
        self.counts.last_failure = str(failure)
        self._accept(batch, failure.partial, missing=None)
        rest = [entry for entry in batch if not entry.result.done()]
        for entry in reversed(rest):
            entry.attempts += 1
            if failure.kind == "transient" and entry.attempts <= self._settings.retries:
                delay_s = self._settings.backoff_s * 2 ** (entry.attempts - 1)
                self._put_later(entry, delay_s)
            elif failure.kind != "transient" and not entry.alone and len(batch) > 1:
                entry.alone = True
                self._put(entry, first=True)
            else:
                status = "timeout" if failure.kind == "timeout" else "error"
                self._finish(entry, self._failed(entry, status, str(failure)))

    def _put_later(self, entry: _Waiting, delay_s: float) -> None:
        async def put() -> None:
            await asyncio.sleep(delay_s)
            self._put(entry)

        task = asyncio.create_task(put())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    # ---- results -------------------------------------------------------------------------------

    def _accept(
        self, batch: Sequence[_Waiting], answers: Sequence[Any], *, missing: str | None
    ) -> None:
        """Matches answers with requests by id, and checks each.

        Raises:
            CallFailed: `answers` are no list.
        """
        if not isinstance(answers, Sequence) or isinstance(answers, str):
            raise CallFailed("fault", f"answered a {type(answers).__name__}, not a list")
        found: dict[str, RewardResult] = {}
        problems: dict[str, str] = {}
        stray: str | None = None
        for answer in answers:
            try:
                result = self._checked(result_from_json(answer))
            except WireError as error:
                stray = str(error)
                if isinstance(name := _id_of(answer), str):
                    problems[name] = stray
                continue
            if result.id in found:
                problems[result.id] = "two results for it"
            found[result.id] = result
        for entry in batch:
            name = entry.request.id
            if problem := problems.get(name):
                self._finish(entry, self._failed(entry, "error", problem))
            elif name in found:
                self._finish(entry, found[name])
            elif missing is not None:
                told = f"{missing} among {len(answers)} ({stray})" if stray else missing
                self._finish(entry, self._failed(entry, "error", told))

    def _checked(self, result: RewardResult) -> RewardResult:
        low, high = self.spec.range
        if result.score is not None and not low <= result.score <= high:
            return RewardResult(
                result.id,
                "error",
                error=f"score {result.score:g} is outside the range [{low:g}, {high:g}]",
            )
        return result

    def _failed(self, entry: _Waiting, status: Any, message: str) -> RewardResult:
        return RewardResult(entry.request.id, status, error=f"{self.spec.name}: {message}")

    def _finish(self, entry: _Waiting, result: RewardResult) -> None:
        if entry.result.done():
            return
        if result.status in ("error", "timeout"):
            self.counts.failures[result.status] += 1
            self.counts.last_error = result.error
        elif entry.key is not None:
            self._cache[entry.key] = result
            if len(self._cache) > self._settings.cache_entries:
                self._cache.popitem(last=False)
        entry.result.set_result(result)


class Breaker:
    """Stops calls after failures in a row; after a while lets one through to see."""

    def __init__(self, threshold: int, reset_s: float, clock: Callable[[], float]) -> None:
        self._threshold, self._reset_s, self._clock = threshold, reset_s, clock
        self.failures = 0
        self._opened_at_s: float | None = None

    def allows(self) -> bool:
        if self._opened_at_s is None:
            return True
        if self._clock() - self._opened_at_s < self._reset_s:
            return False
        self._opened_at_s = self._clock()  # the next one waits again unless this one succeeds
        return True

    def failed(self) -> None:
        self.failures += 1
        if self.failures >= self._threshold:
            self._opened_at_s = self._clock()

    def succeeded(self) -> None:
        self.failures = 0
        self._opened_at_s = None


def _id_of(answer: Any) -> Any:
    return answer.get("id") if isinstance(answer, dict) else getattr(answer, "id", None)
