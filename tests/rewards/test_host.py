"""The host: every request is answered in order and in time, whatever the reward does."""

import asyncio
import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_requests import request, requests

from rewards.backend import CallFailed
from rewards.host import Breaker, RewardHost
from rewards.protocol import RewardResult, RewardSpec
from rewards.settings import CallSettings

QUICK = CallSettings(
    timeout_s=2.0, call_timeout_s=0.2, backoff_s=0.01, breaker_failures=50, breaker_reset_s=60.0
)
SPEC = RewardSpec("stand-in", max_batch=4)


class StandIn:
    """A backend that answers what `answer(batch)` says; an exception is raised."""

    def __init__(self, answer, *, spec=SPEC, lanes=1):
        self.answer, self._spec, self.lanes = answer, spec, lanes
        self.batches = []
        self.under_way = self.most_under_way = 0

    async def open(self, timeout_s):
        return self._spec

    async def score(self, lane, batch, timeout_s):
        self.batches.append([request.id for request in batch])
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(0)
            answer = self.answer(batch)
            if asyncio.iscoroutine(answer):
                answer = await answer
        finally:
            self.under_way -= 1
        return answer

    async def close(self):
        pass


def right(batch):
    return [RewardResult(request.id, score=_number(request) / 1000) for request in batch]


def _number(request):
    return int(request.id.rpartition("#")[2])


def run(backend, *batches, settings=QUICK):
    """What a host answers to batches that are asked for at once, and the host."""

    async def ask():
        host = RewardHost(backend, settings)
        await host.open()
        try:
            return await asyncio.gather(*(host.score(batch) for batch in batches)), host
        finally:
            await host.close()

    return asyncio.run(ask())


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    lanes=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_each_request_has_its_own_result_in_order(sizes, lanes, seed):
    order = random.Random(seed)

    def shuffled(batch):
        results = right(batch)
        order.shuffle(results)
        return results

    numbers = itertools.count()
    batches = [[request(next(numbers)) for _ in range(size)] for size in sizes]
    backend = StandIn(shuffled, lanes=lanes)
    answers, _ = run(backend, *batches)
    for batch, results in zip(batches, answers, strict=True):
        assert [result.id for result in results] == [request.id for request in batch]
        assert [result.score for result in results] == [_number(r) / 1000 for r in batch]
    assert max(map(len, backend.batches), default=0) <= SPEC.max_batch
    assert backend.most_under_way <= lanes


def test_requests_of_many_groups_share_a_call():
    backend = StandIn(right)
    run(backend, [request(0), request(1)], [request(2)], [request(3)])
    assert len(backend.batches) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda batch: right(batch)[:-1], "no result"),
        (lambda batch: [*right(batch), right(batch)[-1]], "two results"),
        (lambda batch: [*right(batch)[:-1], RewardResult("other", score=1.0)], "no result"),
        (lambda batch: [*right(batch)[:-1], 0.5], "a result must be an object, not float 0.5"),
    ],
)
def test_a_wrong_answer_costs_one_request_its_score(answer, message):
    (results,), _ = run(StandIn(answer), requests(3))
    assert [result.status for result in results] == ["ok", "ok", "error"]
    assert results[2].score is None
    assert message in results[2].error
    assert "stand-in" in results[2].error


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (float("nan"), "score is nan"),
        (float("inf"), "score is inf"),
        (1.5, r"1.5 is outside the range [-1, 1]"),
        ("0.5", "must be a number, not str '0.5'"),
        (True, "must be a number, not bool True"),
        (None, "must be a number, not NoneType None"),
    ],
)
def test_what_is_no_score_never_becomes_one(score, message):
    def answer(batch):
        return [RewardResult(request.id, score=score) for request in batch]

    ((result,),), host = run(StandIn(answer), [request()])
    assert (result.status, result.score) == ("error", None)
    assert message in result.error
    assert host.counts.failures == {"error": 1}


def test_a_reward_that_never_answers_costs_no_more_than_the_deadline():
    async def ask():
        host = RewardHost(StandIn(lambda _: asyncio.sleep(3600)), replace(QUICK, timeout_s=0.5))
        await host.open()
        began = asyncio.get_running_loop().time()
        results = await host.score(requests(9))
        waited_s = asyncio.get_running_loop().time() - began
        await host.close()
        return results, waited_s

    results, waited_s = asyncio.run(ask())
    assert {result.status for result in results} == {"timeout"}
    assert waited_s < 1.0


def test_one_poisonous_request_costs_the_others_nothing():
    def answer(batch):
        if any(_number(request) == 2 for request in batch):
            raise CallFailed("timeout", "killed")
        return right(batch)

    (results,), _ = run(StandIn(answer), requests(8))
    assert [r.status for r in results] == ["ok", "ok", "timeout", *["ok"] * 5]


def test_what_was_answered_before_a_failure_is_kept():
    def answer(batch):
        raise CallFailed("died", "killed by SIGKILL", right(batch)[: len(batch) - 1])

    (results,), _ = run(StandIn(answer), requests(3))
    assert [result.status for result in results] == ["ok", "ok", "error"]
    assert "SIGKILL" in results[2].error


def test_only_what_may_pass_is_tried_again():
    for kind, calls in (("transient", 3), ("fault", 1), ("timeout", 1)):

        def answer(batch, kind=kind):
            raise CallFailed(kind, "no")

        backend = StandIn(answer)
        ((result,),), _ = run(backend, [request()])
        assert result.status == ("timeout" if kind == "timeout" else "error")
        assert len(backend.batches) == calls, kind


def test_a_server_that_comes_back_costs_nothing():
    answers = iter([CallFailed("transient", "HTTP status 503")])

    def answer(batch):
        for failure in answers:
            raise failure
        return right(batch)

    (results,), host = run(StandIn(answer), requests(3))
    assert {result.status for result in results} == {"ok"}
    assert host.counts.failures == {}


def test_after_failures_in_a_row_it_is_not_called_for_a_while():
    def answer(batch):
        raise CallFailed("fault", "broken")

    backend = StandIn(answer)
    settings = replace(QUICK, breaker_failures=3)
    (results,), _ = run(backend, requests(40), settings=settings)
    assert {result.status for result in results} == {"error"}
    assert len(backend.batches) == 3
    assert "not called after 3 failures in a row; the last: broken" in results[-1].error


def test_the_breaker_lets_one_call_through_after_its_time():
    now = [0.0]
    breaker = Breaker(2, 10.0, lambda: now[0])
    breaker.failed()
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()
    now[0] = 11.0
    assert [breaker.allows(), breaker.allows()] == [True, False]
    breaker.succeeded()
    assert breaker.allows()


def test_a_deterministic_reward_is_asked_once_for_equal_content():
    same = [replace(request(0), id=f"copy#{number}") for number in range(3)]

    async def ask(spec):
        backend = StandIn(right, spec=spec)
        host = RewardHost(backend, QUICK)
        await host.open()
        results = [await host.score([each]) for each in same]
        await host.close()
        return len(backend.batches), results

    calls, results = asyncio.run(ask(SPEC))
    assert calls == 1
    assert [result.id for (result,) in results] == ["copy#0", "copy#1", "copy#2"]
    assert {result.score for (result,) in results} == {0.0}
    assert asyncio.run(ask(replace(SPEC, deterministic=False)))[0] == 3


def test_a_failure_is_not_kept():
    answers = iter([lambda _: [RewardResult("copy#0", "error", error="once")], right])

    async def ask():
        host = RewardHost(StandIn(lambda batch: next(answers)(batch)), QUICK)
        await host.open()
        each = replace(request(0), id="copy#0")
        results = [(await host.score([each]))[0].status for _ in range(2)]
        await host.close()
        return results

    assert asyncio.run(ask()) == ["error", "ok"]
