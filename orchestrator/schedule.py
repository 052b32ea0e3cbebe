"""Which prompts are generated when, and which of them make a step.

A unit of prompts gets a ticket when it is admitted, numbered through the phase in the order of the
data. Steps are made of tickets in that order, whatever order they finish in: nothing is lost
between two steps, long judgments are trained on as often as short ones, and which prompts a step
has does not depend on time. With a step's worth of B units and a bound of s steps

    admitted - retired - dropped <= (s + 1) B        (s B while a step is being trained)

so that a unit is trained on by weights at most s steps newer than those that wrote it (the rule of
AReaL, 2505.24298, section 5.1, made exact by the order). One that is older all the same, as a
recovered one may be, is generated again. Plain logic: no clock, no asyncio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from judging.errors import InfrastructureError

T = TypeVar("T")


class Outcome(StrEnum):
    """What a finished unit is good for."""

    KEPT = "kept"
    AGREEING = "agreeing"  # all scores alike: replaced, and used where replacements run out
    FAILED = "failed"  # too few scores: replaced, and never used


@dataclass(frozen=True, slots=True)
class Batch(Generic[T]):
    """One step's units."""

    units: Sequence[T]  # in the order of their tickets
    tickets: tuple[int, ...]
    dropped: int  # units that were replaced
    stale: int  # units that were too old and generated again
    drawn: int  # tickets of the phase up to this step, this one's included


@dataclass(frozen=True, slots=True)
class _Finished(Generic[T]):
    outcome: Outcome
    unit: T
    version: int  # lowest weight version that wrote some of it


class Schedule(Generic[T]):
    """Life: `admit` while it `may_admit`, `finish` tickets, `take` a step, say `trained`."""

    def __init__(
        self,
        step_units: int,
        *,
        max_staleness: int,
        max_rounds: int,
        max_open: int | None = None,
        steps: int | None = None,
        drawn: int = 0,
    ) -> None:
        """`max_rounds` steps' worth of units are drawn at most for one step; see `open_units`.

        With `steps` there are so many to come, and nothing is admitted for others. `drawn` tickets
        were given out before.
        """
        self._step_units, self._max_rounds = step_units, max_rounds
        self._max_staleness = max_staleness
        self._limit = max_open or open_units(step_units, max_staleness)
        self._first = self._head = self._next = drawn  # of this step; not looked at; not given out
        self._finished: dict[int, _Finished[T]] = {}
        self._kept: list[int] = []  # of this step
        self._agreeing: list[int] = []
        self._dropped = 0  # of this step and those after it
        self._training = 0  # units of the step that is being trained
        self._steps_left = steps
        self._again: list[int] = []  # tickets whose units were too old
        self._stale = 0  # of this step

    @property
    def may_admit(self) -> bool:
        if self._again:
            return True
        waiting = self._next - self._first
        wanted = self._limit - self._training
        if self._steps_left is not None:
            wanted = min(wanted, self._steps_left * self._step_units)
        return waiting < wanted + min(self._dropped, (self._max_rounds - 1) * self._step_units)

    @property
    def open(self) -> int:
        """Units that are being generated or scored."""
        return self._next - self._first - len(self._finished) - len(self._again)

    def admit(self) -> int:
        """A ticket to be generated: the next one, or one that is to be generated again."""
        assert self.may_admit
        if self._again:
            return self._again.pop(0)
        self._next += 1
        return self._next - 1

    def finish(self, ticket: int, outcome: Outcome, unit: T, *, version: int) -> None:
        """`version` is the lowest weight version that wrote some of the unit."""
        self._finished[ticket] = _Finished(outcome, unit, version)
        self._dropped += outcome is not Outcome.KEPT

    def take(self, version: int) -> Batch[T] | None:
        """The next step's units, to be learned from by weights of `version`; None while some are
        missing.

        Raises:
            InfrastructureError: of all that may be drawn for a step, no unit has enough scores.
        """
        last = self._first + self._max_rounds * self._step_units
        while len(self._kept) < self._step_units and self._head < last:
            if (finished := self._finished.get(self._head)) is None:
                return None
            if version - finished.version > self._max_staleness:
                self._generate_again(self._head)
                return None
            if finished.outcome is Outcome.KEPT:
                self._kept.append(self._head)
            elif finished.outcome is Outcome.AGREEING:
                self._agreeing.append(self._head)
            self._head += 1
        return self._retire()

    def trained(self) -> None:
        """The weights that learned from the last step's units are out."""
        self._training = 0

    def _generate_again(self, ticket: int) -> None:
        self._dropped -= self._finished.pop(ticket).outcome is not Outcome.KEPT
        self._again.append(ticket)
        self._stale += 1

    def _retire(self) -> Batch[T]:
        missing = self._step_units - len(self._kept)
        tickets = tuple(sorted(self._kept + self._agreeing[:missing]))
        if not tickets:
            raise InfrastructureError(
                f"no unit of {self._head - self._first} that were drawn for a step has "
                "reward.min_samples scored samples"
            )
        drawn = {number: self._finished.pop(number) for number in range(self._first, self._head)}
        self._dropped -= sum(each.outcome is not Outcome.KEPT for each in drawn.values())
        dropped = len(drawn) - len(tickets)
        self._first, self._kept, self._agreeing = self._head, [], []
        self._training = self._step_units
        if self._steps_left is not None:
            self._steps_left -= 1
        stale, self._stale = self._stale, 0
        units = [drawn[number].unit for number in tickets]
        return Batch(units, tickets, dropped, stale, drawn=self._head)


def open_units(step_units: int, max_staleness: int) -> int:
    """Units that may be generated, waiting or trained on at a time; with more, some would be too
    old in their step, and with fewer than a step's worth there would be no step at all."""
    return step_units * (max_staleness + 1)
