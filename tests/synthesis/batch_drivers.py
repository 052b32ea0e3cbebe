"""Drivers that ask a stand-in for the services in batches, in time that takes none."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from batch_stub import MODEL

from judging.records import Message, PreferencePair, Presentation
from synthesis.batches import batch_service
from synthesis.ledger import Ledger
from synthesis.records import Answer, TeacherRequest, Usage, request_key
from synthesis.settings import Teacher

PAIR = PreferencePair("0" * 16, (Message("user", "Which?"),), "this", "that")
USAGE = Usage(17, 4, 5)  # of each answer of the stand-in
BOTH = pytest.mark.parametrize("uses", ["openai-batch", "anthropic-batch"])


class Clock:
    """Time that goes by as soon as everybody waits for it."""

    def __init__(self):
        self.now_s = 1.8e9
        self.slept = []

    def __call__(self):
        return self.now_s

    async def sleep(self, seconds):
        self.slept.append(seconds)
        await asyncio.sleep(0.002)
        self.now_s += seconds


def starts(stub, clock, folder):
    """Starts one driver after another: a service with the ledger."""

    @asynccontextmanager
    async def start(uses, *, most_bytes=10**8, **settings):
        url = stub.url + ("/v1" if uses == "openai-batch" else "")
        teacher = Teacher(uses=uses, **{"model": MODEL, "base_url": url, **settings})
        with Ledger(folder / "ledger.sqlite") as ledger:
            service = batch_service(
                "big",
                teacher,
                key_variable="STUB_KEY",
                ledger=ledger,
                clock=clock,
                sleep=clock.sleep,
                most_bytes=most_bytes,
            )
            try:
                yield SimpleNamespace(service=service, ledger=ledger, settings=teacher)
            finally:
                await service.close()

    return start


def request(text, **kwargs):
    messages = (Message("system", "Judge."), Message("user", text))
    kwargs = {"sample": 0, "temperature": 0.5, "max_new_tokens": 64} | kwargs
    key = request_key("uses", MODEL, messages, parameters={}, **kwargs)
    return TeacherRequest(key, Presentation(PAIR, "chosen_first"), messages, **kwargs)


def requests(count):
    return [request(f"question {number}") for number in range(count)]


async def answers(service, asked):
    """Of each, or what it raised; what was answered is written."""
    async with asyncio.timeout(20):
        found = await asyncio.gather(*map(service.answer, asked), return_exceptions=True)
    for one, answer in zip(asked, found, strict=True):
        if isinstance(answer, Answer):
            service.written(one.key)
    return found


async def write(driver, asked, found):
    for one, answer in zip(asked, found, strict=True):
        await driver.ledger.answered(
            one.key, "big", MODEL, answer, cost_nusd=0, is_from_cache=False
        )


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)
