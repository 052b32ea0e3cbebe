"""The rollout pump: keeps as many units in flight as the schedule admits, while the learners train.

Owns the tasks and nothing else: what may be in flight, and what makes a step, is the schedule's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Generic, Self, TypeVar

from orchestrator.schedule import Batch, Outcome, Schedule

P = TypeVar("P")  # prompts that are judged together
T = TypeVar("T")  # what comes of them

# A finished unit: what it is good for, and the lowest weight version that wrote some of it.
Judged = tuple[Outcome, T, int]


class RolloutPump(Generic[P, T]):
    """Life: `async with`, in it `batch` and `trained` in turns."""

    def __init__(
        self,
        schedule: Schedule[T],
        units: Iterator[P],
        judge: Callable[[int, P], Awaitable[Judged[T]]],
        recovered: Mapping[int, Judged[T]] | None = None,
    ) -> None:
        """`units` are those of the tickets to come, and `recovered` what an earlier driver left."""
        self._schedule, self._units, self._judge = schedule, units, judge
        self._recovered = dict(recovered or {})
        self._open: dict[int, P] = {}  # by ticket, until they are trained on or dropped
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._error: BaseException | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def open(self) -> int:
        """Units that are being generated or scored."""
        return self._schedule.open

    async def batch(self, version: int) -> Batch[T]:
        """The next step's units, to be learned from by weights of `version`.

        Raises whatever judging a unit raised.
        """
        while (batch := self._schedule.take(version)) is None:
            self._admit()
            if self._error is not None:
                raise self._error
            await self._changed.wait()
            self._changed.clear()
        for ticket in range(batch.drawn - len(batch.tickets) - batch.dropped, batch.drawn):
            del self._open[ticket]
        self._admit()
        return batch

    def trained(self) -> None:
        """The weights that learned from the last batch are out."""
        self._schedule.trained()
        self._admit()

    def _admit(self) -> None:
        while self._error is None and self._schedule.may_admit:
            ticket = self._schedule.admit()
            if ticket not in self._open:  # else it is generated again
                self._open[ticket] = next(self._units)
            if (judged := self._recovered.pop(ticket, None)) is not None:
                self._finish(ticket, judged)
                continue
            task = asyncio.create_task(self._work(ticket))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self, ticket: int) -> None:
        try:
            self._finish(ticket, await self._judge(ticket, self._open[ticket]))
            self._admit()
        except Exception as error:  # the step that waits for it raises it
            self._error = error
            self._changed.set()

    def _finish(self, ticket: int, judged: Judged[T]) -> None:
        outcome, unit, version = judged
        self._schedule.finish(ticket, outcome, unit, version=version)
        self._changed.set()
