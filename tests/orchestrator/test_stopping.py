"""Being asked to end: what is waited for, what is raised, and what the exit status says."""

import asyncio
import pickle
import signal

import pytest

from judging.errors import InfrastructureError
from orchestrator.stopping import WAIT_SHARE, AskedToStop, StopRequest

GRACE_S = 0.4


@pytest.fixture
async def asked():
    """A request that has begun, what it said, and a task to be ended."""
    said: list[str] = []
    stop = StopRequest(GRACE_S, say=said.append)
    stop.has_begun = True
    driving = asyncio.create_task(asyncio.sleep(60))
    yield stop, said, driving
    driving.cancel()


async def test_nothing_is_raised_until_it_is_asked(asked):
    stop, said, _ = asked
    stop.check()
    assert await stop.while_waited_for(asyncio.sleep(0, "batch")) == "batch"
    assert said == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_the_first_signal_ends_the_run_between_two_steps(asked, number, status):
    stop, said, driving = asked
    stop.ask(number, driving)
    with pytest.raises(AskedToStop) as raised:
        stop.check()
    assert raised.value.exit_code == status
    assert pickle.loads(pickle.dumps(raised.value)).exit_code == status
    assert said[0].startswith(number.name)
    assert "deadlines.grace_s" in said[0]
    assert not driving.cancelling()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_the_second_signal_ends_it_at_once(asked, number, status):
    stop, _, driving = asked
    stop.ask(signal.SIGTERM, driving)
    stop.ask(number, driving)
    assert driving.cancelling()
    assert stop.at_once().exit_code == status
    assert "stopped at once" in str(stop.at_once())


async def test_before_the_phases_the_first_one_ends_it_at_once(asked):
    stop, _, driving = asked
    stop.has_begun = False
    stop.ask(signal.SIGTERM, driving)
    assert driving.cancelling()


async def test_engines_are_waited_for_until_half_of_the_time(asked):
    stop, _, driving = asked
    stop.ask(signal.SIGTERM, driving)
    assert await stop.while_waited_for(asyncio.sleep(GRACE_S / 8, "in time")) == "in time"
    engines = asyncio.ensure_future(asyncio.sleep(60))
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(AskedToStop):
        await stop.while_waited_for(engines)
    waited_s = asyncio.get_running_loop().time() - began_s
    assert waited_s < GRACE_S * WAIT_SHARE + 0.2
    await asyncio.sleep(0)
    assert engines.cancelled()


async def test_what_takes_longer_than_the_time_there_is_is_cut(asked):
    stop, _, driving = asked
    stop.ask(signal.SIGTERM, driving)
    with pytest.raises(asyncio.CancelledError):
        await driving
    assert f"not ended within {GRACE_S:.0f} s (deadlines.grace_s)" in str(stop.at_once())
    assert stop.at_once().exit_code == 143


async def test_what_has_ended_in_time_is_not_cut_any_more(asked):
    stop, _, driving = asked
    stop.ask(signal.SIGTERM, driving)
    stop.ended()
    await asyncio.sleep(GRACE_S * 1.5)
    assert not driving.done()


async def test_a_lost_cluster_ends_it_at_once(asked):
    stop, _, driving = asked
    error = InfrastructureError("raylet")
    await stop.end_on(asyncio.sleep(0, error), driving)
    assert driving.cancelling()
    assert stop.at_once() is error


async def test_what_engines_raise_is_raised(asked):
    stop, _, _ = asked

    async def broken():
        raise ValueError("no engine")

    with pytest.raises(ValueError, match="no engine"):
        await stop.while_waited_for(broken())
