"""Asking one teacher: nothing twice, at its pace, within the budget, and again where it fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from judging.errors import ConfigurationError, GavelError, InfrastructureError
from synthesis.budget import Budget, cost_nusd, most_usage
from synthesis.ledger import Ledger
from synthesis.pacing import Pace, backoff_s
from synthesis.records import Answer, RequestFailed, TeacherRequest, Unanswered
from synthesis.settings import Price, Teacher

OUTAGE = 10  # requests in a row of which none was answered in any try


class TryFailed(Exception):
    """One try brought no answer, and another one may."""

    def __init__(
        self,
        why: str,
        *,
        is_overload: bool = False,
        retry_after_s: float | None = None,
        is_in_doubt: bool = False,
    ) -> None:
        super().__init__(why)
        self.is_overload = is_overload  # the service wants fewer requests
        self.retry_after_s = retry_after_s
        self.is_in_doubt = is_in_doubt  # the service may have answered, and charge for it


class Service(Protocol):
    """What writes traces; one try is one call."""

    async def check(self) -> None:
        """Whether it can be asked, found out for free; raises ConfigurationError if not."""
        ...

    async def answer(self, request: TeacherRequest) -> Answer:
        """Raises TryFailed, or RequestFailed for a request that it will never answer."""
        ...

    def written(self, key: str) -> None:
        """The answer to a request will not be lost any more."""
        ...

    async def close(self) -> None: ...


@dataclass
class Probation:
    """The first answers of a teacher, before which no more requests are sent than these."""

    name: str
    window: int
    max_nonsense: float  # share of the window

    def __post_init__(self) -> None:
        self._sent = self._read = self._nonsense = 0
        self._failed: ConfigurationError | None = None
        self._changed = asyncio.Condition()

    @property
    def _is_over(self) -> bool:
        return self._failed is None and self._read >= self.window

    async def admit(self) -> None:
        """Waits for room. Raises what ended the probation, if that was an error."""
        if self._is_over:
            return
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._failed or self._is_over or self._sent < self.window
            )
            if self._failed is not None:
                raise self._failed
            self._sent += 1

    async def assess(self, *, is_nonsense: bool, error: str = "") -> None:
        """An answer was read, or there is none because of `error`. Raises ConfigurationError if
        too many are nonsense."""
        if self._is_over:
            return
        self._read += 1
        self._nonsense += is_nonsense
        if self._nonsense > self.max_nonsense * self.window:
            self._failed = self._failed or ConfigurationError(
                f"synthesize.teachers.{self.name}: {self._nonsense} of its first {self._read} "
                f"answers hold no verdict{error and f' ({error})'}, more than "
                f"synthesize.max_nonsense ({self.max_nonsense:g}) of {self.window}, and nothing "
                "more was asked: look at them with gavel synthesis, correct its model, "
                "template or max_new_tokens, and go on with --resume"
            )
            raise self._failed
        async with self._changed:
            self._changed.notify_all()

    async def gave_up(self) -> None:
        """A request that was admitted was not answered."""
        if self._is_over:
            return
        async with self._changed:
            self._sent -= 1
            self._changed.notify_all()


class Asker:
    """One teacher with all that it is asked through."""

    def __init__(
        self,
        name: str,
        settings: Teacher,
        service: Service,
        *,
        ledger: Ledger,
        cache: Ledger | None,
        budget: Budget,
        price: Price | None,
        probation: Probation,
        clock: Callable[[], float],
        sleep: Callable[[float], object] = asyncio.sleep,
        seed: int = 0,
    ) -> None:
        self.name, self.settings, self.service = name, settings, service
        self.probation = probation
        self._ledger, self._cache, self._budget, self._price = ledger, cache, budget, price
        self._clock, self._sleep = clock, sleep
        self._rng = random.Random(f"{seed}/{name}")
        self._is_batch = settings.uses.endswith("-batch")
        self._unanswered_in_a_row = 0
        self._output_tokens = 0.25 * settings.max_new_tokens  # of an answer, as far as is known
        self.pace = Pace(
            max_in_flight=self.in_flight,
            requests_per_minute=settings.requests_per_minute,
            tokens_per_minute=settings.tokens_per_minute,
            clock=clock,
            sleep=sleep,
        )
        if self._is_batch or settings.uses in ("engines", "policy"):
            self.pace.limit = float(self.in_flight)  # it queues what it cannot take yet

    @property
    def in_flight(self) -> int:
        """Requests at a time, at most."""
        settings = self.settings
        if self._is_batch:
            return settings.batch_requests * settings.batches_at_a_time
        return settings.max_in_flight

    @property
    def model(self) -> str:
        return self.settings.model or self.settings.uses

    async def ask(self, request: TeacherRequest) -> Answer:
        """The answer, an earlier one if there is one.

        Raises:
            RequestFailed: the teacher does not answer it; Unanswered: it may do another time.
            Spent: the budget is used up.
        """
        # Two pairs may come to the same request, e.g. one with the answers of the other swapped.
        async with self._ledger.alone(request.key):
            return await self._ask(request)

    async def _ask(self, request: TeacherRequest) -> Answer:
        found = await self._ledger.find(request.key)
        if found is None and self._cache is not None:
            found = await self._cache.find(request.key)
            if found is not None:
                await self._write(self._ledger, request, found, cost=0, is_from_cache=True)
        if found is not None:
            return found
        await self.probation.admit()
        try:
            return await self._try_until_answered(request)
        except BaseException:
            await self.probation.gave_up()
            raise

    async def _try_until_answered(self, request: TeacherRequest) -> Answer:
        failures: list[str] = []
        while True:
            try:
                return await self._try(request)
            except TryFailed as error:
                failures.append(str(error))
                if not error.is_in_doubt:
                    await self._ledger.failed(request.key)
                if len(failures) >= self.settings.max_tries:
                    raise self._unanswered(failures) from error
                # What the service asks for is waited for as well, by all (Pace.take).
                longest_s = self.settings.max_backoff_s
                await self._slept(backoff_s(len(failures), longest_s, self._rng))
            except RequestFailed:
                await self._ledger.failed(request.key)
                raise

    def _unanswered(self, failures: list[str]) -> GavelError:
        """One request, or the service as a whole."""
        self._unanswered_in_a_row += 1
        last = f"in {len(failures)} tries each (max_tries); the last: {failures[-1]}"
        if self._unanswered_in_a_row < OUTAGE:
            return Unanswered(f"teacher {self.name} did not answer {last}")
        return InfrastructureError(
            f"synthesize.teachers.{self.name} did not answer {OUTAGE} requests in a row, {last}: "
            "what was answered is kept; go on with --resume when it is back"
        )

    async def _slept(self, seconds: float) -> None:
        await self._sleep(seconds)  # pyright: ignore[reportGeneralTypeIssues]

    async def _try(self, request: TeacherRequest) -> Answer:
        chars = sum(len(message.content) for message in request.messages)
        expected = chars / 4 + self._output_tokens
        most = cost_nusd(
            most_usage(request.messages, request.max_new_tokens),
            self._price,
            is_batch=self._is_batch,
        )
        async with self.pace.slot(), self._budget.room(most):
            taken = await self.pace.take(expected)
            await self._ledger.begin(request.key, self.name, self.model)
            began_s = self._clock()
            try:
                answer = await self.service.answer(request)
            except TryFailed as error:
                if not error.is_in_doubt:
                    self.pace.correct(taken, 0.0)
                if error.is_overload:
                    self.pace.overloaded(began_s, error.retry_after_s)
                raise
            usage = answer.usage
            self._unanswered_in_a_row = 0
            self.pace.succeeded()
            self.pace.correct(taken, usage.input_tokens + usage.output_tokens)
            self._output_tokens += 0.05 * (usage.output_tokens - self._output_tokens)
            cost = cost_nusd(usage, self._price, is_batch=self._is_batch)
            self._budget.spend(cost)
            await self._write(self._ledger, request, answer, cost=cost, is_from_cache=False)
            self.service.written(request.key)
        if self._cache is not None:
            await self._write(self._cache, request, answer, cost=cost, is_from_cache=False)
        return answer

    async def take_up(self, key: str, answer: Answer, model: str, price: Price | None) -> None:
        """An answer that came for a driver that died, by what was its model then."""
        cost = cost_nusd(answer.usage, price, is_batch=self._is_batch)
        if await self._ledger.find(key) is None:
            self._budget.spend(cost)
        for ledger in (self._ledger, self._cache):
            if ledger is not None:
                await ledger.answered(
                    key, self.name, model, answer, cost_nusd=cost, is_from_cache=False
                )

    async def _write(
        self,
        ledger: Ledger,
        request: TeacherRequest,
        answer: Answer,
        *,
        cost: int,
        is_from_cache: bool,
    ) -> None:
        await ledger.answered(
            request.key, self.name, self.model, answer, cost_nusd=cost, is_from_cache=is_from_cache
        )


async def check_all(askers: list[Asker], timeout_s: float) -> None:
    """Whether all can be asked, before the first is. Raises ConfigurationError, and
    InfrastructureError after `timeout_s`."""
    until_s = asyncio.get_running_loop().time() + timeout_s
    for asker in askers:
        try:
            async with asyncio.timeout_at(until_s):
                await asker.service.check()
        except TimeoutError:
            where = asker.settings.base_url or asker.settings.uses
            raise InfrastructureError(
                f"synthesize.teachers.{asker.name}: {where} did not say within {timeout_s:.0f} s "
                "which models it has"
            ) from None
