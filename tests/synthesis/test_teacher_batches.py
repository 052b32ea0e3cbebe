"""Batches of requests, by the services' own clients, against a stand-in for both services."""

import asyncio
from collections import Counter

import pytest
from batch_drivers import BOTH, PAIR, USAGE, answers, request, requests, until
from batch_stub import MODEL

from judging.errors import ConfigurationError, InfrastructureError
from judging.records import Message, Presentation
from synthesis.asking import Asker, Probation, TryFailed
from synthesis.budget import Budget
from synthesis.records import Answer, RequestFailed, TeacherRequest
from synthesis.settings import Price

pytestmark = pytest.mark.integration


@BOTH
async def test_all_are_answered_in_batches_of_the_size_that_is_set(start, stub, uses):
    asked = requests(5)
    async with start(uses, batch_requests=2) as driver:
        await driver.service.check()
        found = await answers(driver.service, asked)
    assert found == [Answer(f"to question {n}", False, USAGE) for n in range(5)]
    assert sorted(len(batch.keys) for batch in stub.batches.values()) == [1, 2, 2]
    assert stub.billed == Counter(one.key for one in asked)


@BOTH
async def test_what_is_sent_is_what_the_service_expects(start, stub, uses):
    async with start(uses, parameters={"top_p": 0.9}) as driver:
        await answers(driver.service, [request("hello")])
    (sent,) = stub.batches["batch_0"].requests
    common = {"model": MODEL, "temperature": 0.5, "max_tokens": 64, "top_p": 0.9}
    user = {"role": "user", "content": "hello"}
    if uses == "openai-batch":
        messages = [{"role": "system", "content": "Judge."}, user]
        assert sent["body"] == common | {"messages": messages}
        assert (sent["method"], sent["url"]) == ("POST", "/v1/chat/completions")
    else:
        assert sent["params"] == common | {"system": "Judge.", "messages": [user]}
    assert sent["custom_id"] == request("hello").key


@BOTH
async def test_a_batch_holds_no_more_bytes_than_it_may(start, stub, uses):
    async with start(uses, most_bytes=40) as driver:
        await answers(driver.service, requests(4))  # of 16 bytes each
    assert [len(batch.keys) for batch in stub.batches.values()] == [2, 2]


@BOTH
async def test_an_equal_request_is_sent_once_and_answered_twice(start, stub, uses):
    async with start(uses) as driver:
        found = await answers(driver.service, [request("hello"), request("hello")])
    assert [answer.text for answer in found] == ["to hello", "to hello"]
    assert list(stub.billed.values()) == [1]


@BOTH
async def test_one_that_waits_no_more_takes_nothing_from_another(start, stub, uses):
    async with start(uses) as driver:
        first, second = (asyncio.create_task(driver.service.answer(request("a"))) for _ in "ab")
        await until(lambda: stub.batches)
        first.cancel()
        assert (await second).text == "to a"


@BOTH
async def test_what_one_request_came_to_does_not_touch_the_others(start, stub, uses):
    fates = ("answered", "cut", "invalid", "broken", "expired", "missing")
    stub.fates = {fate: fate for fate in fates}
    asked = [request(fate) for fate in fates]
    async with start(uses) as driver:
        found = await answers(driver.service, asked)
        assert found[0] == Answer("to answered", False, USAGE)
        assert found[1] == Answer("to cut", True, USAGE)
        assert isinstance(found[2], RequestFailed)
        assert "invalid" in str(found[2])
        assert all(isinstance(failure, TryFailed) for failure in found[3:])
        assert not any(failure.is_in_doubt for failure in found[3:])
        stub.fates = {}
        again = await answers(driver.service, asked[3:])  # the next tries
        assert [answer.text for answer in again] == ["to broken", "to expired", "to missing"]
        await until(lambda: not driver.ledger.open_batches("big"))
    assert [batch.keys for batch in stub.batches.values()] == [
        [one.key for one in asked],
        [one.key for one in asked[3:]],
    ]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        (
            [{"code": "invalid_request", "line": 2, "message": "a bad line"}],
            [TryFailed, RequestFailed],
        ),
        ([{"code": "bad_file", "line": None, "message": "a bad file"}], [ConfigurationError] * 2),
        (
            [{"code": "model_not_found", "line": 1, "message": "a bad model"}],
            [ConfigurationError] * 2,
        ),
        ([], [ConfigurationError] * 2),
    ],
)
async def test_a_batch_that_fails_in_validation_is_not_waited_for(start, stub, errors, expected):
    stub.refusals = [errors]
    async with start("openai-batch") as driver:
        found = await answers(driver.service, requests(2))
        assert [type(failure) for failure in found] == expected
        assert all(error["message"] in str(found[1]) for error in errors)
        await until(lambda: not driver.ledger.open_batches("big"))


@BOTH
async def test_a_key_that_is_not_taken_is_told_at_once(start, stub, monkeypatch, uses):
    monkeypatch.setenv("STUB_KEY", "another")
    async with start(uses) as driver:
        with pytest.raises(ConfigurationError, match=r"teachers\.big.* 401: .*STUB_KEY"):
            await driver.service.check()
        found = await answers(driver.service, requests(2))
        assert all(isinstance(failure, ConfigurationError) for failure in found)
        assert not driver.ledger.open_batches("big")


@BOTH
async def test_a_model_that_is_not_there_is_told_with_those_that_are(start, uses):
    async with start(uses, model="writer-2") as driver:
        with pytest.raises(ConfigurationError, match=r"does not know writer-2: .*writer-1"):
            await driver.service.check()


async def test_another_name_of_a_model_is_known(start):
    async with start("anthropic-batch", model="writer-latest") as driver:
        await driver.service.check()
        assert (await answers(driver.service, [request("hello")]))[0].text == "to hello"


@BOTH
async def test_a_service_that_cannot_say_its_models(start, stub, uses):
    async with start(uses) as driver:
        stub.faults["models"] = [404]
        await driver.service.check()  # it does not tell, and may answer still
        stub.faults["models"] = [(500, 0.01)] * 3
        with pytest.raises(InfrastructureError, match="status 500"):
            await driver.service.check()


@BOTH
@pytest.mark.parametrize(("status", "hint"), [(400, "fault 400"), (413, "batch_requests smaller")])
async def test_a_batch_that_is_refused_is_told(start, stub, uses, status, hint):
    stub.faults["create"] = [status]
    async with start(uses) as driver:
        found = await answers(driver.service, requests(2))
        assert all(isinstance(failure, ConfigurationError) for failure in found)
        assert hint in str(found[0])
        assert not driver.ledger.open_batches("big")


async def test_text_that_is_no_unicode_fails_alone(start, stub):
    messages = (Message("user", "\ud800"),)
    spoilt = TeacherRequest("b" * 32, Presentation(PAIR, "chosen_first"), messages, 0, 1.0, 9)
    async with start("openai-batch") as driver:
        found = await answers(driver.service, [spoilt, request("hello")])
    assert [type(one) for one in found] == [RequestFailed, Answer]


@BOTH
async def test_a_request_that_nobody_waits_for_is_not_sent(start, stub, uses):
    async with start(uses) as driver:
        asking = [asyncio.create_task(driver.service.answer(one)) for one in requests(3)]
        await asyncio.sleep(0)
        asking[0].cancel()
        assert len(await asyncio.gather(*asking[1:])) == 2
    assert [len(batch.keys) for batch in stub.batches.values()] == [2]


@BOTH
async def test_an_asker_asks_in_batches_and_pays_once(start, stub, clock, uses):
    asked = requests(6)
    stub.fates = {"batch_0/question 4": "broken", "question 5": "invalid"}

    async def ask(driver, asked):
        await driver.service.check()
        asker = Asker(
            "big",
            driver.settings,
            driver.service,
            ledger=driver.ledger,
            cache=None,
            budget=Budget(1.0, None, spent_nusd=0, requests=0),
            price=Price(input_usd_per_million=2.0, output_usd_per_million=8.0),
            probation=Probation("big", 0, 0.5),
            clock=clock,
            sleep=clock.sleep,
        )
        async with asyncio.timeout(20):
            found = await asyncio.gather(*map(asker.ask, asked), return_exceptions=True)
        (spending,) = driver.ledger.spending()
        assert (spending.answers, spending.cost_nusd) == (5, 5 * (17 * 1000 + 5 * 4000))
        return found

    async with start(uses, batch_requests=6) as driver:
        found = await ask(driver, asked)
        assert [answer.text for answer in found[:5]] == [f"to question {n}" for n in range(5)]
        assert isinstance(found[5], RequestFailed)
    async with start(uses, batch_requests=6) as driver:
        assert await ask(driver, asked[:5]) == found[:5]  # from the ledger
    assert [len(batch.keys) for batch in stub.batches.values()] == [6, 1]
