"""The passes over the pairs: ask, verify, keep, and ask the next teacher about the rest.

A pair has one outcome, which is written down when it is known: kept with its traces, rejected in
every pass, failed where no teacher answered, or unasked where the budget was used up before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from judging.presentation import balanced_order, both_orders
from judging.prompts import PromptTemplate
from judging.records import PreferencePair, Presentation, Trace
from judging.verification import verify_trace
from synthesis.asking import Asker
from synthesis.ledger import Ledger
from synthesis.records import (
    Answer,
    Attempt,
    Outcome,
    RequestFailed,
    Spent,
    State,
    TeacherRequest,
    Unanswered,
    request_key,
)
from synthesis.settings import Pass, SynthesizeSettings

T = TypeVar("T")

# What the samples of one presentation are worth, of those that may be imitated.
Scorer = Callable[[Presentation, Sequence[Answer]], Awaitable[Sequence[float | None]]]


@dataclass(frozen=True, slots=True)
class Written:
    """An answer of a pass, read."""

    attempt: Attempt
    answer: Answer | None = None  # None: the teacher gave none
    trace: Trace | None = None


@dataclass(slots=True)
class Synthesis:
    """One phase's work. Life: construct, `run` once."""

    settings: SynthesizeSettings
    askers: Mapping[str, Asker]
    templates: Sequence[PromptTemplate]  # of each pass
    ledger: Ledger
    seed: int
    strict_tail: bool = False
    scorer: Scorer | None = None  # where settings.keep is reward
    show: Callable[[Outcome], object] = lambda outcome: None
    between: Callable[[], object] = lambda: None  # two pairs; raises to end the phase
    spent: str | None = field(default=None, init=False)  # why nothing more is asked

    async def run(self, pairs: Sequence[PreferencePair]) -> None:
        """Gives each pair that has none yet its outcome.

        Raises:
            ConfigurationError: a teacher cannot be asked, or answers nonsense.
            InfrastructureError: the ledger or a service failed for good.
        """
        decided = self.ledger.decided()
        left = iter([pair for pair in pairs if pair.uid not in decided])
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(len(pairs), self._at_a_time())):
                    group.create_task(self._work(left))
        except BaseExceptionGroup as errors:  # the first one ended the others
            raise errors.exceptions[0] from None
        if self.spent is not None:
            decided = self.ledger.decided()
            unasked = (pair for pair in pairs if pair.uid not in decided)
            await asyncio.gather(*(self._decide(pair, "unasked", ()) for pair in unasked))

    def _at_a_time(self) -> int:
        """Pairs; enough that no teacher waits for another one's answers."""
        orders = 2 if self.settings.order == "both" else 1
        asked = (
            self.askers[each.teacher].in_flight / each.samples for each in self.settings.passes
        )
        return max(1, round(sum(asked) / orders) + 1)

    async def _work(self, left: Iterator[PreferencePair]) -> None:
        for pair in left:  # once it is spent too: it may be answered, here or in the cache
            self.between()
            try:
                await self._settle(pair)
            except Spent as reason:
                self.spent = self.spent or str(reason)

    async def _settle(self, pair: PreferencePair) -> None:
        if self.settings.order == "both":
            shown = both_orders(pair)
        else:
            shown = (Presentation(pair, balanced_order(pair.uid, self.seed)),)
        found = await _all([self._one_order(each) for each in shown])
        attempts = tuple(attempt for each in found for attempt in each)
        if all(any(attempt.is_kept for attempt in each) for each in found):
            await self._decide(pair, "kept", attempts)
            return
        attempts = tuple(replace(attempt, is_kept=False) for attempt in attempts)
        is_answered = any(attempt.error is None for attempt in attempts)
        await self._decide(pair, "rejected" if is_answered else "failed", attempts)

    async def _decide(
        self, pair: PreferencePair, state: State, attempts: tuple[Attempt, ...]
    ) -> None:
        outcome = Outcome(pair.uid, pair.source, state, attempts)
        await self.ledger.decide(outcome)
        self.show(outcome)

    async def _one_order(self, shown: Presentation) -> list[Attempt]:
        """The attempts of all passes until one of them is kept."""
        attempts: list[Attempt] = []
        failed_trace: str | None = None
        for index, each in enumerate(self.settings.passes):
            written = await self._one_pass(index, each, shown, failed_trace)
            kept = await self._keep(shown, written)
            attempts += [replace(one.attempt, is_kept=one.attempt.key in kept) for one in written]
            if kept:
                break
            failed_trace = next((one.answer.text for one in written if one.answer), failed_trace)
        return attempts

    async def _one_pass(
        self, index: int, each: Pass, shown: Presentation, failed_trace: str | None
    ) -> list[Written]:
        asker, template = self.askers[each.teacher], self.templates[index]
        verdict, failed = (shown.gold, failed_trace) if each.tells_verdict else (None, None)
        messages = template.render(shown, verdict=verdict, failed_trace=failed)
        settings = asker.settings
        temperature = settings.temperature if each.temperature is None else each.temperature
        requests = [
            TeacherRequest(
                key=request_key(
                    settings.uses,
                    settings.model,
                    messages,
                    sample=sample,
                    temperature=1.0 if temperature is None else temperature,
                    max_new_tokens=settings.max_new_tokens,
                    parameters={
                        **settings.parameters,
                        **settings.options,
                        **({"keep_reasoning": True} if settings.keep_reasoning else {}),
                    },
                ),
                presentation=shown,
                messages=messages,
                sample=sample,
                temperature=1.0 if temperature is None else temperature,
                max_new_tokens=settings.max_new_tokens,
                verdict=verdict,
                failed_trace=failed,
            )
            for sample in range(each.samples)
        ]
        return await _all([self._one(asker, index + 1, request) for request in requests])

    async def _one(self, asker: Asker, number: int, request: TeacherRequest) -> Written:
        shown = request.presentation
        attempt = Attempt(shown.order, number, request.sample, asker.name, request.key)
        try:
            answer = await asker.ask(request)
        except RequestFailed as error:
            await asker.probation.assess(is_nonsense=True, error=str(error))
            is_unanswered = isinstance(error, Unanswered)
            return Written(replace(attempt, error=str(error), is_unanswered=is_unanswered))
        trace, rejections = verify_trace(
            shown,
            answer.text,
            checks=self.settings.checks,
            truncated=answer.is_truncated,
            told_verdict=request.verdict is not None,
            strict_tail=self.strict_tail,
        )
        await asker.probation.assess(is_nonsense=trace.verdict.letter is None)
        return Written(replace(attempt, rejections=tuple(rejections)), answer, trace)

    async def _keep(self, shown: Presentation, written: Sequence[Written]) -> set[str]:
        """The keys of the answers that are kept; no text twice."""
        right = {
            one.answer.text: one
            for one in reversed(written)  # the first of equal ones
            if one.answer is not None and not one.attempt.rejections
        }
        found = sorted(right.values(), key=lambda one: one.attempt.sample)
        if not found:
            return set()
        answers = [one.answer for one in found if one.answer is not None]
        match self.settings.keep:
            case "all":
                return {one.attempt.key for one in found}
            case "first":
                best = 0
            case "shortest":
                best = min(range(len(answers)), key=lambda i: len(answers[i].text))
            case "reward":
                assert self.scorer is not None, "the driver gives it where keep is reward"
                scores = await self.scorer(shown, answers)
                known = [(score, -i) for i, score in enumerate(scores) if score is not None]
                if not known:
                    return set()
                best = -max(known)[1]
        return {found[best].attempt.key}


async def _all(parts: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What each part comes to. An error ends the others at once, but for Spent: what they have
    asked is paid for, and waited for."""
    if len(parts) == 1:
        return [await parts[0]]
    spent: list[Spent] = []

    async def unless_spent(part: Coroutine[Any, Any, T]) -> T | None:
        try:
            return await part
        except Spent as reason:
            spent.append(reason)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(unless_spent(part)) for part in parts]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    if spent:
        raise spent[0]
    return [found for task in tasks if (found := task.result()) is not None]
