"""Rewards that are named Ray actors, on a real cluster of this machine."""

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from reward_requests import request, requests

from orchestrator.cluster import ray_cluster
from rewards import RewardResult, RewardSpec
from rewards.backend import CallFailed
from rewards.host import RewardHost
from rewards.named_actor import NamedActorBackend
from rewards.settings import CallSettings

ROOT = Path(__file__).parent.parent.parent
SETTINGS = CallSettings(timeout_s=15.0, call_timeout_s=2.0, retries=6, backoff_s=0.2)
pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(240)]


# Workers cannot import a test's module, so its classes travel whole.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with ray_cluster(4):
        yield


class ByProtocol:
    """Is given records, because its spec is one."""

    def spec(self):
        return RewardSpec("by protocol", range=(0.0, 1.0))

    async def score(self, batch):
        return [
            RewardResult(each.id, score=float(each.trace.verdict.letter == "A")) for each in batch
        ]


class ByDuckTyping:
    """Is given dicts, because its spec is one; does as its first request's response says."""

    def spec(self):
        return {"name": "duck", "range": [0, 1], "deterministic": False}

    def score(self, batch):
        import os
        import time

        match batch[0]["response"]:
            case "die":
                os._exit(1)
            case "sleep":
                time.sleep(60)
            case "raise":
                raise ValueError("not today")
        return [{"id": each["id"], "score": 0.25} for each in batch]


class NoReward:
    def spec(self):
        return {"name": "none"}


def start(kind, name, **options):
    actor = ray.remote(kind).options(name=name, namespace="team", num_cpus=0, **options).remote()
    ray.get(actor.spec.remote())
    return actor


def run(name, *batches, settings=SETTINGS):
    async def ask():
        host = RewardHost(NamedActorBackend("team", name, settings), settings)
        await host.open()
        try:
            return [await host.score(batch) for batch in batches]
        finally:
            await host.close()

    return asyncio.run(ask())


def test_an_actor_with_the_protocol_is_given_records():
    actor = start(ByProtocol, "protocol")
    (results,) = run("protocol", [request(0), request(1, "no verdict")])
    assert [result.score for result in results] == [1.0, 0.0]
    ray.kill(actor)


def test_a_duck_typed_actor_is_given_dicts():
    actor = start(ByDuckTyping, "duck")
    (results,) = run("duck", requests(3))
    assert [(result.status, result.score) for result in results] == [("ok", 0.25)] * 3
    ray.kill(actor)


@pytest.mark.parametrize(
    ("response", "status", "message"),
    [("raise", "error", "not today"), ("sleep", "timeout", "no answer within 2 s")],
)
def test_what_goes_wrong_in_the_actor_is_typed(response, status, message):
    actor = start(ByDuckTyping, f"bad-{response}")
    ((result,),) = run(f"bad-{response}", [request(0, response)])
    assert (result.status, result.score) == (status, None)
    assert message in result.error
    ray.kill(actor)


def test_an_actor_that_its_author_restarts_is_found_again():
    actor = start(ByDuckTyping, "restarted")

    async def ask():
        host = RewardHost(NamedActorBackend("team", "restarted", SETTINGS), SETTINGS)
        await host.open()
        before = await host.score([request(0)])
        ray.kill(actor)
        scoring = asyncio.create_task(host.score([request(1)]))
        await asyncio.sleep(0.5)
        again = await asyncio.to_thread(start, ByDuckTyping, "restarted")
        after = await scoring
        await host.close()
        return before, after, again

    before, after, again = asyncio.run(ask())
    assert [result.status for result in (*before, *after)] == ["ok", "ok"], after
    ray.kill(again)


def test_an_actor_that_dies_of_a_request_is_a_typed_failure():
    actor = start(ByDuckTyping, "mortal", max_restarts=-1)
    once = replace(SETTINGS, retries=0)
    ((died,),) = run("mortal", [request(0, "die")], settings=once)
    assert (died.status, died.score) == ("error", None)
    assert "the actor is gone" in died.error
    ((alive,),) = run("mortal", [request(1)])
    assert alive.status == "ok"
    ray.kill(actor)


def test_what_is_not_there_or_is_no_reward_is_refused():
    actor = start(NoReward, "no reward")
    for name, message in (("absent", "no Ray actor 'absent'"), ("no reward", "no method score")):
        with pytest.raises(CallFailed, match=message):
            run(name)
    ray.kill(actor)


def test_the_example_is_found_by_another_job(tmp_path):
    log = (tmp_path / "log").open("w")
    author = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "rewards" / "actor.py")],
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        told = author.stdout.readline()
        assert "asks" in told, (tmp_path / "log").read_text()[-2000:]
        (results,) = run("asks", [request(0, "asked for a number")])
        assert [(result.status, result.score) for result in results] == [("ok", 1.0)]
    finally:
        author.terminate()
        author.wait(20)
