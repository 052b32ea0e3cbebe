"""Batches of drivers that are killed and of services that fail: nothing is sent twice."""

import asyncio
from collections import Counter

import pytest
from batch_drivers import BOTH, answers, request, requests, until, write

from judging.errors import ConfigurationError
from synthesis.asking import TryFailed
from synthesis.records import Answer

pytestmark = pytest.mark.integration


@BOTH
@pytest.mark.parametrize("when", ["hang", "hang after"])
async def test_a_driver_that_was_killed_while_it_sent_is_gone_on_with(start, stub, uses, when):
    """The service has not got the batch, or its id has not arrived."""
    asked = requests(3)
    other = {"messages": [{"role": "user", "content": "of somebody else"}]}
    stub.add([{"custom_id": f"other {n}", "params": other, "body": other} for n in range(3)])
    stub.faults["create"] = [when]
    stub.polls = 0
    async with start(uses) as killed:
        asking = asyncio.create_task(answers(killed.service, asked))
        await until(stub.hangs.is_set)
        asking.cancel()
    async with start(uses) as driver:
        ((_, content),) = driver.ledger.open_batches("big")
        assert content["keys"] == [one.key for one in asked]
        await driver.service.check()
        found = await answers(driver.service, asked)
        assert [answer.text for answer in found] == [f"to question {n}" for n in range(3)]
        await write(driver, asked, found)
        await until(lambda: not driver.ledger.open_batches("big"))
    assert {stub.billed[one.key] for one in asked} == {1}


@BOTH
async def test_a_driver_that_was_killed_while_it_waited_is_gone_on_with(start, stub, uses):
    asked = requests(3)
    stub.polls = 10**6
    async with start(uses) as killed:
        asking = asyncio.create_task(answers(killed.service, asked))
        await until(lambda: stub.calls["retrieve"] > 3)
        asking.cancel()
    stub.batches["batch_0"].polls = 2
    async with start(uses) as driver:
        await driver.service.check()
        found = await answers(driver.service, asked[1:])  # the other one is asked later
        assert [answer.text for answer in found] == ["to question 1", "to question 2"]
        assert [name for name, _ in driver.ledger.open_batches("big")] == ["batch_0"]
        assert (await answers(driver.service, asked[:1]))[0].text == "to question 0"
        await until(lambda: not driver.ledger.open_batches("big"))
    assert stub.billed == Counter(one.key for one in asked)


@BOTH
async def test_results_that_were_fetched_and_not_written_are_fetched_again(start, stub, uses):
    asked = requests(3)
    async with start(uses) as killed:
        found = await asyncio.gather(*map(killed.service.answer, asked))
        await write(killed, asked[:1], found[:1])
        killed.service.written(asked[0].key)
    async with start(uses) as driver:
        await driver.service.check()
        again = await answers(driver.service, asked[1:])
        assert again == found[1:]
        await write(driver, asked[1:], again)
        await until(lambda: not driver.ledger.open_batches("big"))
    assert stub.billed == Counter(one.key for one in asked)


@BOTH
async def test_a_batch_that_was_answered_in_full_is_forgotten(start, stub, uses):
    asked = requests(2)
    async with start(uses) as killed:
        found = await asyncio.gather(*map(killed.service.answer, asked))
        await write(killed, asked, found)
    async with start(uses) as driver:
        assert driver.ledger.open_batches("big")
        await driver.service.check()
        assert not driver.ledger.open_batches("big")


@BOTH
async def test_a_request_that_failed_and_was_sent_again_is_awaited_in_its_last_batch(
    start, stub, uses
):
    asked = [request("fine"), request("late")]
    stub.fates = {"batch_0/late": "expired"}
    async with start(uses) as killed:
        await asyncio.gather(*map(killed.service.answer, asked), return_exceptions=True)
        stub.polls = 10**6
        asking = asyncio.create_task(killed.service.answer(asked[1]))
        await until(lambda: len(stub.batches) == 2)
        await until(lambda: len(killed.ledger.open_batches("big")) == 2)
        asking.cancel()
    stub.batches["batch_1"].polls = 1
    async with start(uses) as driver:
        await driver.service.check()
        found = await answers(driver.service, asked)
        assert [answer.text for answer in found] == ["to fine", "to late"]
        assert len(stub.batches) == 2


@BOTH
async def test_an_answer_to_sending_that_is_lost_is_no_second_batch(start, stub, uses):
    stub.faults["create"] = ["cut after"]
    async with start(uses) as driver:
        found = await answers(driver.service, requests(2))
    assert [answer.text for answer in found] == ["to question 0", "to question 1"]
    assert len(stub.batches) == 1


@BOTH
async def test_a_batch_that_is_looked_for_is_none_of_the_others(start, stub, uses):
    async with start(uses, batch_requests=2) as driver:
        stub.polls = 10**6
        first = [asyncio.create_task(driver.service.answer(one)) for one in requests(2)]
        await until(lambda: stub.batches)
        stub.polls, stub.faults["create"] = 0, ["cut"]
        found = await answers(driver.service, [request("other 0"), request("other 1")])
        assert [answer.text for answer in found] == ["to other 0", "to other 1"]
        assert not any(asking.done() for asking in first)
        for asking in first:
            asking.cancel()


@BOTH
async def test_sending_is_repeated_where_the_service_had_none_of_it(start, stub, clock, uses):
    stub.faults["create"] = [500, (429, 777), "cut"]
    async with start(uses) as driver:
        found = await answers(driver.service, requests(2))
    assert [answer.text for answer in found] == ["to question 0", "to question 1"]
    assert len(stub.batches) == 1
    assert 777.0 in clock.slept
    assert stub.calls["list"] == 2  # 429 leaves no doubt


@BOTH
async def test_polling_outlives_failures_and_waits_as_it_is_told(start, stub, clock, uses):
    stub.faults = {"retrieve": [500, (429, 123), "cut"], "content": [503, "cut"]}
    async with start(uses) as driver:
        found = await answers(driver.service, requests(2))
    assert [answer.text for answer in found] == ["to question 0", "to question 1"]
    assert 123.0 in clock.slept
    assert len(stub.batches) == 1


@BOTH
async def test_a_batch_that_takes_too_long_is_cancelled(start, stub, uses):
    stub.polls = 10**6
    async with start(uses, batch_timeout_s=300.0) as driver:
        found = await answers(driver.service, requests(2))
        assert all(isinstance(failure, TryFailed) for failure in found)
        await until(lambda: not driver.ledger.open_batches("big"))
    assert stub.batches["batch_0"].is_cancelled


@BOTH
async def test_a_service_that_is_gone_leaves_its_requests_in_doubt(start, stub, uses):
    stub.faults = {"retrieve": [500] * 100}
    async with start(uses, batch_timeout_s=300.0) as driver:
        found = await answers(driver.service, requests(2))
    assert all(isinstance(failure, TryFailed) and failure.is_in_doubt for failure in found)


async def test_a_batch_that_there_is_no_room_for_is_sent_again_later(start, stub):
    stub.refusals = [[{"code": "token_limit_exceeded", "message": "too many tokens"}]]
    async with start("openai-batch") as driver:
        found = await answers(driver.service, requests(2))
        assert [answer.text for answer in found] == ["to question 0", "to question 1"]
        assert [batch.errors is None for batch in stub.batches.values()] == [False, True]
        await until(lambda: not driver.ledger.open_batches("big"))


@BOTH
async def test_a_key_that_ends_while_a_batch_is_processed_loses_nothing(start, stub, uses):
    asked = requests(2)
    stub.faults["retrieve"] = [403]
    async with start(uses) as driver:
        found = await answers(driver.service, asked)
        assert all(isinstance(failure, ConfigurationError) for failure in found)
    async with start(uses) as driver:
        await driver.service.check()
        assert isinstance((await answers(driver.service, asked))[0], Answer)
    assert len(stub.batches) == 1


@BOTH
async def test_a_batch_that_the_service_does_not_know_is_asked_again_once_it_is_old(
    start, stub, clock, uses
):
    asked = requests(2)
    async with start(uses) as killed:
        await asyncio.gather(*map(killed.service.answer, asked))
    stub.batches.clear()
    async with start(uses) as driver:  # another account, perhaps
        await driver.service.check()
        found = await answers(driver.service, asked)
        assert all(isinstance(failure, ConfigurationError) for failure in found)
    clock.now_s += 30 * 86_400
    async with start(uses) as driver:
        await driver.service.check()
        found = await answers(driver.service, asked)
        assert all(isinstance(failure, TryFailed) for failure in found)
        assert isinstance((await answers(driver.service, asked))[0], Answer)
