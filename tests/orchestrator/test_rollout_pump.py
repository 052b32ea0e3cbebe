"""The rollout pump: units in flight, and who hears of what goes wrong."""

import asyncio
from itertools import count

import pytest

from judging.errors import InfrastructureError
from orchestrator.rollout_pump import RolloutPump
from orchestrator.schedule import Outcome, Schedule


def schedule(**changes) -> Schedule:
    return Schedule(**{"step_units": 2, "max_staleness": 0, "max_rounds": 2, **changes})


async def test_units_are_generated_while_the_step_before_is_trained():
    judged = []

    async def judge(ticket: int, unit: int):
        judged.append(ticket)
        await asyncio.sleep(0)
        return Outcome.KEPT, unit * 10, 0

    async with RolloutPump(schedule(max_staleness=1), count(), judge) as pump:
        assert (await pump.batch(0)).units == [0, 10]
        await asyncio.sleep(0.01)
        assert judged == [0, 1, 2, 3]
        pump.trained()
        assert (await pump.batch(1)).units == [20, 30]


async def test_what_was_recovered_is_not_generated_unless_it_is_too_old():
    judged = []

    async def judge(ticket: int, unit: int):
        judged.append(ticket)
        return Outcome.KEPT, f"new {unit}", 5

    recovered = {3: (Outcome.KEPT, "left 3", 5), 4: (Outcome.KEPT, "left 4", 4)}
    plan = schedule(drawn=3)
    async with RolloutPump(plan, count(3), judge, recovered) as pump:
        batch = await pump.batch(5)
    assert (batch.units, batch.stale, judged) == (["left 3", "new 4"], 1, [4])


async def test_what_goes_wrong_in_a_unit_ends_the_step_that_waits():
    async def judge(ticket: int, unit: int):
        if ticket == 1:
            raise InfrastructureError("no engine")
        await asyncio.sleep(1000)

    async with RolloutPump(schedule(), count(), judge) as pump:
        with pytest.raises(InfrastructureError, match="no engine"):
            await pump.batch(0)


async def test_what_went_wrong_while_a_step_was_trained_ends_the_next_one():
    async def judge(ticket: int, unit: int):
        if ticket == 3:
            raise InfrastructureError("no engine")
        return Outcome.KEPT, unit, 0

    async with RolloutPump(schedule(max_staleness=1), count(), judge) as pump:
        await pump.batch(0)
        await asyncio.sleep(0.01)
        with pytest.raises(InfrastructureError, match="no engine"):
            async with asyncio.timeout(1):
                await pump.batch(0)


async def test_leaving_takes_back_what_is_in_flight():
    ended = []

    async def judge(ticket: int, unit: int):
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(ticket)

    pump = RolloutPump(schedule(), count(), judge)
    async with pump:
        waiting = asyncio.create_task(pump.batch(0))
        await asyncio.sleep(0.01)
        assert pump.open == 2
        waiting.cancel()
    assert sorted(ended) == [0, 1]
