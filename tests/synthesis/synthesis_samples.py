"""Requests, answers, pairs and teachers for the tests of a synthesis."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from dataclasses import replace

from judging.records import Message, PreferencePair, Presentation, pair_uid
from synthesis.asking import Asker, Probation
from synthesis.budget import Budget
from synthesis.records import Answer, Attempt, Outcome, TeacherRequest, Usage
from synthesis.settings import Price, Teacher

PRICE = Price(input_usd_per_million=3.0, output_usd_per_million=15.0)


def sample_pair(number: int = 0, **changes) -> PreferencePair:
    conversation = (Message("user", f"What is {number} + {number}?"),)
    chosen, rejected = f"It is {2 * number}.", f"It is {2 * number + 1}."
    uid = pair_uid(conversation, chosen, rejected)
    return replace(PreferencePair(uid, conversation, chosen, rejected, "sums"), **changes)


def sample_request(key: str = "key", **changes) -> TeacherRequest:
    shown = Presentation(sample_pair(), "chosen_first")
    messages = (Message("user", "Which answer is better?"),)
    return replace(TeacherRequest(key, shown, messages, 0, 1.0, 100), **changes)


def sample_answer(text: str = "a trace", tokens: tuple[int, int] = (10, 20), **changes) -> Answer:
    return Answer(text, **{"usage": Usage(tokens[0], 0, tokens[1]), **changes})


def sample_outcome(uid: str, state="kept", attempts: tuple[Attempt, ...] = ()) -> Outcome:
    return Outcome(uid, "sums", state, attempts)


def judgment(letter: str, solution: str = "I add both up.") -> str:
    """A trace that passes the checks."""
    return (
        f"<type>Reasoning</type><solution>{solution}</solution>"
        f"<eval>One of the answers has another sum.</eval><answer>[[{letter}]]</answer>"
    )


class FakeService:
    """Answers by a function of the request and the try; raises what that returns as an error."""

    def __init__(self, reply: Callable[[TeacherRequest, int], Answer | Exception]) -> None:
        self._reply = reply
        self.asked: list[str] = []  # keys, in the order of the tries
        self.written_down: list[str] = []
        self.in_flight = self.most_in_flight = 0
        self.delay: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0)

    async def check(self) -> None:
        pass

    async def answer(self, request: TeacherRequest) -> Answer:
        self.asked.append(request.key)
        number = self.asked.count(request.key)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await self.delay()
        finally:
            self.in_flight -= 1
        found = self._reply(request, number)
        if isinstance(found, Exception):
            raise found
        return found

    def written(self, key: str) -> None:
        self.written_down.append(key)

    async def close(self) -> None:
        pass


def unbounded() -> Budget:
    return Budget(None, None, spent_nusd=0, requests=0)


def make_asker(service, ledger, clock, **changes) -> Asker:
    """With a clock of its own; what is not named is without bound."""
    name = changes.pop("name", "strong")
    uses = changes.pop("uses", "openai")
    settings = changes.pop("settings", None) or Teacher(
        uses=uses, model="m", base_url="http://127.0.0.1:1/v1"
    )
    parts = {
        "cache": None,
        "budget": unbounded(),
        "price": PRICE,
        "probation": Probation(name, 0, 1.0),
        "clock": clock,
        "sleep": getattr(clock, "sleep", asyncio.sleep),
    }
    return Asker(name, settings, service, ledger=ledger, **{**parts, **changes})


class Clock:
    """Time that passes when all tasks wait for it: give `sleep` to what is tested."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept: list[float] = []
        self._sleeping: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        woken = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._sleeping, (self.now_s + seconds, self._count, woken))
        await woken

    async def run(self, work, *, until_s: float = float("inf"), turns: int = 40):
        """What `work` answers; None if it takes longer than `until_s`. Fails where all wait for
        something that does not come."""
        task = asyncio.ensure_future(work)
        while not task.done():
            for _ in range(turns):  # of the loop, for whatever need not wait for time
                await asyncio.sleep(0)
                if task.done():
                    return task.result()
            if not self._sleeping:
                await asyncio.sleep(0.002)  # the ledger's thread
                self._idle = getattr(self, "_idle", 0) + 1
                assert self._idle < 2500, "all wait, and nothing will come"
                continue
            self._idle = 0
            at_s, _, woken = heapq.heappop(self._sleeping)
            if at_s > until_s:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                return None
            self.now_s = max(self.now_s, at_s)
            if not woken.done():
                woken.set_result(None)
        return task.result()
