"""The fleet on a real cluster of this machine, with workers that die, hang and answer nonsense."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from fleet_workers import rollout

from actors.answers import flaw_of, flaw_of_top_tokens
from actors.fleet import RolloutFleet
from actors.health import Health
from actors.load import Loads
from actors.placement import Placement
from actors.rollout import EngineSpec, GenerationRequest
from actors.settings import Deadlines, PlacementSettings, RolloutSettings
from judging.errors import ConfigurationError, InfrastructureError
from judging.records import FinishReason
from learning.settings import LearnerSettings
from learning.windows import TopTokens, TrainSample
from orchestrator.cluster import ray_cluster


def request(uid: str, samples: int = 2) -> GenerationRequest:
    return GenerationRequest(uid, (1, 2), samples, seed=1, temperature=1.0, max_new_tokens=4)


# ---- pure ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "flaw"),
    [
        ({}, None),
        ({"presentation_uid": "other"}, "sample 0: it is sample 0 of other"),
        ({"sample": 3}, "sample 0: it is sample 3 of pair"),
        ({"token_ids": np.zeros(0, np.int32)}, "0 tokens, where 1 to 4"),
        ({"token_ids": np.zeros(5, np.int32)}, "5 tokens, where 1 to 4"),
        ({"token_ids": np.array([1, -2, 3], np.int32)}, "token ids below 0"),
        ({"logprobs": np.zeros(2, np.float32)}, "2 log-probabilities of 3 tokens"),
        ({"logprobs": np.array([-1, np.nan, 0], np.float32)}, "log-probabilities that are none"),
        ({"logprobs": np.array([-1, 0.5, 0], np.float32)}, "log-probabilities that are none"),
        ({"finish_reason": FinishReason.ABORT}, "taken back by the engine"),
    ],
)
def test_what_no_answer_is_has_a_name(changes, flaw):
    asked = request("pair", samples=1)
    found = flaw_of(asked, [rollout(asked, 0, **changes)])
    assert found == flaw or (flaw and flaw in found)


def test_too_few_samples_are_no_answer():
    assert flaw_of(request("pair"), []) == "0 samples instead of 2"


@pytest.mark.parametrize(
    ("ids", "logprobs", "flaw"),
    [
        ([[1, 2], [3, 4]], [[-0.1, -3], [0, -20]], None),
        ([[1, 2]], [[-1, -2]], "(1, 2) tokens, where (2, 2)"),
        ([[1, 2], [3, 4]], [[-1, -2]], "tokens, where (2, 2)"),
        ([[1, 2], [3, 4]], [[-1, -2], [-1, np.nan]], "log-probabilities that are none"),
        ([[1, 2], [3, 4]], [[-1, -2], [0.5, -2]], "log-probabilities that are none"),
        ([[1, 2], [3, -4]], [[-1, -2], [-1, -2]], "token ids below 0"),
    ],
)
def test_likeliest_tokens_must_be_some(ids, logprobs, flaw):
    sample = TrainSample(np.zeros(1, np.int32), np.zeros(2, np.int32))
    top = TopTokens(np.array(ids, np.int32), np.array(logprobs, np.float32))
    found = flaw_of_top_tokens(sample, 2, top)
    assert found == flaw or (flaw and flaw in found)


def test_work_goes_to_who_has_the_least():
    loads = Loads()
    assert loads.least() is None
    for engine in range(3):
        loads.set(engine, 0)
    in_flight = Counter()
    for _ in range(9):
        engine = loads.least()
        in_flight[engine] += 1
        loads.set(engine, in_flight[engine])
    assert in_flight == {0: 3, 1: 3, 2: 3}
    loads.remove(0)
    loads.set(2, 0)
    assert loads.least() == 2
    for _ in range(1000):
        loads.set(1, 5)
    assert len(loads._heap) < 100
    loads.remove(2)
    assert (loads.least(), len(loads)) == (1, 1)


# ---- on Ray ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        with ray_cluster(4):
            yield


def placed(spec: EngineSpec) -> Placement:
    return Placement(PlacementSettings(), LearnerSettings(), spec.settings, Deadlines())


@asynccontextmanager
async def fleet_of(folder: Path, *, workers=2, hang_s=60.0, start_s=60.0, **settings):
    """A fleet with what it said; weights need no bringing up."""
    told: list[str] = []
    spec = EngineSpec(
        model_path=str(folder),
        dtype="fp32",
        context_tokens=64,
        settings=RolloutSettings(worker="fleet_workers:Worker", workers=workers, **settings),
    )
    deadlines = Deadlines(start_s=start_s, hang_s=hang_s, generate_s=60.0)
    placement = placed(spec)
    fleet = RolloutFleet(spec, deadlines, placement, tell=told.append)
    fleet.bring_up = lambda engine: fleet.has_weights(engine, engine.actor)
    await fleet.start()
    try:
        yield fleet, told
    finally:
        await fleet.stop()
        for group in placement._groups:  # for the next test; a run's go with its driver
            group.release()


@pytest.mark.integration
async def test_a_worker_that_dies_while_it_starts_is_started_again(cluster, tmp_path):
    (tmp_path / "deaths-at-start").write_text("2")
    async with fleet_of(tmp_path, workers=1, max_restarts=2) as (fleet, told):
        assert told == ["rollout worker 0 died while it started: once more"] * 2
        assert fleet.restarts == 2
        assert (await fleet.generate(request("after")))[0].presentation_uid == "after"
    (tmp_path / "deaths-at-start").write_text("2")
    with pytest.raises(InfrastructureError, match=r"starting the rollout workers: .*died"):
        async with fleet_of(tmp_path, workers=1, max_restarts=1):
            pass


async def until(reached, what: str, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not reached():
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("deed", "reason"),
    [("die", "taken out"), ("hang", "no answer for"), ("garbage", "1 samples instead of 2")],
)
@pytest.mark.integration
@pytest.mark.timeout(240)
async def test_what_a_bad_worker_had_goes_to_others_and_it_comes_back(
    cluster, tmp_path, deed, reason
):
    async with fleet_of(tmp_path, hang_s=6.0) as (fleet, told):
        uids = [f"{deed}/x", *(f"slow/{number}" for number in range(12))]
        answers = await asyncio.gather(*(fleet.generate(request(uid)) for uid in uids))
        assert [answer[0].presentation_uid for answer in answers] == uids
        await until(lambda: len(told) == 2, "it is back")
        assert reason in told[0]
        assert told[1] == f"rollout worker {told[0][15]} takes work again"
        assert fleet.restarts == 1
        assert [engine.health.state for engine in fleet.engines] == [Health.HEALTHY] * 2
        assert [engine.samples for engine in fleet.engines] == [0, 0]


@pytest.mark.integration
@pytest.mark.timeout(240)
async def test_a_worker_takes_no_work_before_it_holds_the_weights(cluster, tmp_path):
    async with fleet_of(tmp_path) as (fleet, _):
        may_bring_up = asyncio.Event()

        async def bring_up(engine) -> None:
            await may_bring_up.wait()
            await fleet.has_weights(engine, engine.actor)

        fleet.bring_up = bring_up
        await fleet.generate(request("die/x"))
        (stale,) = [e for e in fleet.engines if e.health.state is not Health.HEALTHY]
        await until(lambda: stale.health.state is Health.STALE, "it is up")
        busy = [asyncio.create_task(fleet.generate(request(f"slow/{n}"))) for n in range(6)]
        await asyncio.sleep(0.5)
        assert stale.samples == 0
        await asyncio.gather(*busy)
        may_bring_up.set()
        await until(lambda: stale.health.state is Health.HEALTHY, "it is current")


@pytest.mark.integration
@pytest.mark.timeout(240)
async def test_a_request_that_fells_every_worker_is_to_blame(cluster, tmp_path):
    async with fleet_of(tmp_path) as (fleet, _):
        with pytest.raises(InfrastructureError, match=r"poison/x: 3 rollout workers failed on it"):
            await fleet.generate(request("poison/x"))


@pytest.mark.integration
@pytest.mark.timeout(240)
async def test_below_min_workers_it_waits_and_then_says_for_what(cluster, tmp_path):
    async with fleet_of(tmp_path, workers=1, max_restarts=1, start_s=20.0) as (fleet, told):
        (tmp_path / "does-not-start").touch()
        what = r"0 rollout workers take work, fewer than rollout\.min_workers \(1\): worker 0"
        with pytest.raises(InfrastructureError, match=what):
            await fleet.generate(request("die/x"))
        assert told[-1].startswith("rollout worker 0 stays out")


@pytest.mark.integration
@pytest.mark.timeout(240)
async def test_when_all_are_out_their_work_waits_for_them(cluster, tmp_path):
    async with fleet_of(tmp_path, workers=1) as (fleet, _):
        answers = await asyncio.gather(*(fleet.generate(request(f"die/{n}")) for n in range(3)))
        assert [answer[0].presentation_uid for answer in answers] == ["die/0", "die/1", "die/2"]
        assert fleet.restarts == 1


@pytest.mark.integration
@pytest.mark.timeout(240)
async def test_a_worker_joins_while_others_work(cluster, tmp_path):
    async with fleet_of(tmp_path, workers=1) as (fleet, told):
        assert await fleet.add() == 1
        await until(lambda: told == ["rollout worker 1 takes work"], "it joined")
        answers = await asyncio.gather(*(fleet.generate(request(f"slow/{n}")) for n in range(4)))
        assert len({answer[0].text for answer in answers}) == 2  # processes


@pytest.mark.integration
@pytest.mark.timeout(240)
async def test_likeliest_tokens_that_are_none_are_asked_of_another(cluster, tmp_path):
    ids = np.arange(4, dtype=np.int32)
    async with fleet_of(tmp_path, workers=2) as (fleet, told):
        top = await fleet.top_tokens("pair", TrainSample(ids[:2], ids), 3)
        assert top.ids.shape == top.logprobs.shape == (4, 3)
        assert "(3, 3) tokens, where (4, 3) were asked for" in told[0]


@pytest.mark.integration
@pytest.mark.timeout(240)
async def test_another_models_engines_stand_in_its_places_while_it_is_stopped(cluster, tmp_path):
    folders = tmp_path / "own", tmp_path / "other"
    for folder in folders:
        folder.mkdir()
    (folders[0] / "deaths-at-start").write_text("1")
    async with fleet_of(folders[0], workers=2) as (fleet, _):
        (before, _) = await fleet.generate(request("first"))
        await fleet.stop()
        assert (fleet.up(), fleet.working) == ([], 0)
        other = fleet.of_model(str(folders[1]))
        await other.start()
        try:
            (_, _) = await other.generate(request("die"))
            assert (folders[1] / "die").exists()
        finally:
            await other.stop()
        await fleet.start()
        (after, _) = await fleet.generate(request("second"))
        assert (fleet.working, fleet.restarts) == (2, 1)
        assert before.text != after.text  # processes


@pytest.mark.integration
@pytest.mark.timeout(240)
async def test_a_worker_class_that_does_not_exist_is_named(cluster, tmp_path):
    spec = EngineSpec(
        model_path=str(tmp_path),
        dtype="fp32",
        context_tokens=64,
        settings=RolloutSettings(worker="fleet_workers:Nobody"),
    )
    with pytest.raises(ConfigurationError, match=r"rollout\.worker \(fleet_workers:Nobody\)"):
        await RolloutFleet(spec, Deadlines(), placed(spec)).start()
