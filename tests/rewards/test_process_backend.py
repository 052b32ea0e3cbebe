"""Python rewards in their own process: whatever one does, it costs its own requests alone."""

import asyncio
import os
import time
from dataclasses import replace

import pytest
from reward_requests import request, requests

from rewards.backend import CallFailed
from rewards.host import RewardHost
from rewards.process import ProcessBackend
from rewards.settings import CallSettings

pytestmark = [pytest.mark.integration, pytest.mark.alone]
SETTINGS = CallSettings(
    timeout_s=8.0, call_timeout_s=1.0, breaker_failures=2, memory_mib=256, backoff_s=0.05
)


def run(attribute, batch, *, settings=SETTINGS, **options):
    """Results, seconds, and the host after it was closed."""

    async def ask():
        host = RewardHost(ProcessBackend("bad_rewards", attribute, options, settings), settings)
        await host.open()
        try:
            began = time.monotonic()
            results = await host.score(batch)
            return results, time.monotonic() - began, host
        finally:
            await host.close()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("attribute", "options"),
    [("good", {}), ("good_async", {}), ("Scores", {}), ("Scores", {"answer": "reversed"})],
)
def test_functions_and_classes_score(attribute, options):
    results, _, host = run(attribute, requests(5), **options)
    assert [result.status for result in results] == ["ok"] * 5
    assert [result.id for result in results] == [request.id for request in requests(5)]
    assert host.spec.name in ("good", "good_async", "scores")


@pytest.mark.parametrize(
    ("attribute", "options", "status", "message"),
    [
        ("sleeps", {}, "timeout", "no answer within 1 s; its process was killed"),
        ("spins", {}, "timeout", "no answer within 1 s; its process was killed"),
        ("raises", {}, "error", "LookupError: no such thing"),
        ("nan", {}, "error", "score is nan"),
        ("infinite", {}, "error", "score is inf"),
        ("text", {}, "error", "answered a str, not a number"),
        ("too_high", {}, "error", "outside the range"),
        ("killed", {}, "error", "its process ended: signal SIGKILL"),
        ("eats_memory", {}, "error", "MemoryError"),
        ("Scores", {"answer": "too few"}, "error", "no result"),
        ("Scores", {"answer": "doubled"}, "error", "two results"),
        ("Scores", {"answer": "wrong ids"}, "error", "no result"),
        ("Scores", {"answer": "numbers"}, "error", "must be an object"),
        ("Scores", {"answer": "a string"}, "error", "not a list"),
        ("Scores", {"answer": "none"}, "error", "not a list"),
        ("Scores", {"answer": "raises"}, "error", "RuntimeError: the whole batch"),
        ("Scores", {"answer": "score and error"}, "error", "status error with a score"),
    ],
)
def test_what_goes_wrong_is_typed_and_in_time(attribute, options, status, message):
    results, waited_s, host = run(attribute, [request()], **options)
    ((result),) = results
    assert (result.status, result.score) == (status, None)
    assert message in result.error
    assert waited_s < SETTINGS.call_timeout_s + 5
    assert host.counts.failures == {status: 1}


@pytest.mark.parametrize("attribute", ["sleeps", "spins", "killed"])
def test_a_whole_step_of_it_waits_no_longer_than_the_deadline(attribute):
    results, waited_s, _ = run(attribute, requests(200))
    assert all(result.score is None for result in results)
    assert waited_s < SETTINGS.timeout_s + 5


def test_a_busy_loop_for_one_request_costs_the_others_nothing():
    settings = replace(SETTINGS, breaker_failures=5)
    results, _, _ = run("spins_at_three", requests(8), settings=settings)
    assert [result.status for result in results] == ["ok"] * 3 + ["timeout"] + ["ok"] * 4


def test_a_skipped_request_has_no_score():
    (result,), _, _ = run("nothing", [request()])
    assert (result.status, result.score, result.error) == ("skipped", None, None)


def test_a_reward_is_not_given_the_runs_own_secrets(monkeypatch):
    monkeypatch.setenv("GAVEL_STORE_PASSWORD", "secret")
    (result,), _, _ = run("sees_secrets", [request()])
    assert (result.status, result.score) == ("ok", 0.0)


def test_what_a_reward_prints_is_no_answer():
    (result,), _, _ = run("prints", [request()])
    assert (result.status, result.score) == ("ok", 1.0)


def test_processes_work_side_by_side():
    settings = replace(SETTINGS, concurrency=3, call_timeout_s=5.0)
    results, waited_s, _ = run("slow", requests(6), settings=settings)
    assert [result.status for result in results] == ["ok"] * 6
    assert waited_s < 10


@pytest.mark.parametrize(
    ("module", "attribute", "message"),
    [
        ("no_such_module", "x", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("bad_rewards", "absent", "has no attribute 'absent'"),
        ("bad_rewards", "NoProtocol", "without spec and score: decorate a function with @reward"),
        ("bad_rewards", "NOT_A_REWARD", "is a int without spec and score"),
        ("bad_rewards", "FromTheFuture", "speaks api_version 99, and this Gavel 1"),
    ],
)
def test_what_cannot_be_loaded_says_so(module, attribute, message):
    with pytest.raises(CallFailed) as caught:
        asyncio.run(ProcessBackend(module, attribute, {}, SETTINGS).open(10.0))
    assert message in str(caught.value)


def test_options_reach_a_class_and_wrong_ones_are_refused():
    with pytest.raises(CallFailed, match="unexpected keyword argument 'colour'"):
        asyncio.run(ProcessBackend("bad_rewards", "good", {"colour": 1}, SETTINGS).open(10.0))


def test_no_process_is_left_behind():
    async def ask():
        backend = ProcessBackend("bad_rewards", "spins", {}, SETTINGS)
        host = RewardHost(backend, SETTINGS)
        await host.open()
        pid = backend._children[0].process.pid
        scoring = asyncio.create_task(host.score([request()]))
        await asyncio.sleep(0.2)
        await host.close()
        scoring.cancel()
        return pid

    pid = asyncio.run(ask())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
