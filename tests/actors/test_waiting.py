"""Waiting for actors: a deadline, a name for what is awaited, and errors as they were raised."""

import asyncio
import errno

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from actors.waiting import within
from judging.errors import DataError, InfrastructureError


async def answer(value):
    return value


async def fail(error: Exception):
    raise error


def task_error(cause: Exception) -> RayTaskError:
    """What awaiting a remote call raises whose method raised `cause`."""
    lines = ["Traceback (most recent call last):", f"{type(cause).__name__}: {cause}"]
    return RayTaskError("generate", "\n".join(lines), cause).as_instanceof_cause()


async def test_an_answer_in_time_is_passed_on():
    assert await within(5.0, "the engine", answer(7)) == 7


async def test_a_missed_deadline_says_for_what_and_how_long():
    with pytest.raises(InfrastructureError, match=r"^publishing weights: no answer within 0 s$"):
        await within(0.01, "publishing weights", asyncio.sleep(30))


async def test_an_error_that_an_actor_raised_on_purpose_comes_back_as_it_is():
    cause = DataError("pairs.jsonl, line 3: no chosen answer")
    with pytest.raises(DataError, match=r"^pairs.jsonl, line 3: no chosen answer$") as caught:
        await within(5.0, "reading", fail(task_error(cause)))
    assert caught.value is cause


async def test_an_unforeseen_error_of_an_actor_keeps_its_traceback():
    with pytest.raises(InfrastructureError, match=r"^a training step: ") as caught:
        await within(
            5.0, "a training step", fail(task_error(ZeroDivisionError("division by zero")))
        )
    assert "division by zero" in str(caught.value)


async def test_what_the_machine_refused_an_actor_is_one_line():
    cause = OSError(errno.EIO, "Input/output error", "/runs/run-1/checkpoints/step-000003")
    with pytest.raises(InfrastructureError) as caught:
        await within(5.0, "reading a checkpoint", fail(task_error(cause)))
    assert str(caught.value) == (
        "reading a checkpoint: [Errno 5] Input/output error: '/runs/run-1/checkpoints/step-000003'"
    )


async def test_a_dead_actor_is_named():
    with pytest.raises(InfrastructureError, match=r"^rollout worker 1: "):
        await within(5.0, "rollout worker 1", fail(ActorDiedError()))


async def test_an_error_of_the_driver_itself_is_not_relabelled():
    with pytest.raises(KeyError):
        await within(5.0, "the verifier", fail(KeyError("uid")))


async def test_a_cancelled_wait_stays_a_cancellation():
    waiting = asyncio.create_task(within(30.0, "the verifier", asyncio.sleep(30)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
