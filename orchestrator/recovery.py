"""Learners that are lost, while the run goes on: started anew, and brought to where they were.

They start from the newest checkpoint and take the committed steps after it once more, from the
batches on disk; what was being done is then done again. Engines and verifiers go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from actors.learner_group import LearnersLost
from judging.errors import InfrastructureError
from learning.batches import load_batches
from orchestrator.resume import Position, find_position
from orchestrator.run import Run

P = ParamSpec("P")
T = TypeVar("T")


async def go_to(run: Run) -> None:
    """The run's counts and engines to where it is taken up; nothing for a new run."""
    position = run.position
    run.steps, run.trained = position.steps, position.trained
    if position.before:
        run.checkpoint = str(run.directory.path / position.before.path)
    if position.phase or position.step:
        run.telemetry.say(
            f"taking the run up in phase {position.phase + 1}, after step {position.step}"
        )
    if not position.committed:  # else once the learners have taken its steps
        await bring_engines_up(run)


async def begin_on_learners(run: Run, index: int, begin: Callable[[], Awaitable[None]]) -> int:
    """Begins a phase on the learners, where this driver takes it up; the steps that are done."""
    run.begin_on_learners = begin
    position = run.position if run.position.phase == index else None
    async with run.publisher.updating():
        try:
            await begin()
            if position is not None:
                await replay(run, position)
        except LearnersLost as error:
            await _bring_back(run, error)
    if position is None or not position.committed:
        return 0
    run.steps += position.step
    await bring_engines_up(run)
    return position.step


async def on_learners(
    run: Run, work: Callable[P, Awaitable[T]], /, *arguments: P.args, **named: P.kwargs
) -> T:
    """Does `work` on the learners, and once more from the start whenever they are lost by it.

    Raises:
        InfrastructureError: they were lost more often than `learner.max_restarts`.
    """
    async with run.publisher.updating():
        while True:
            try:
                return await work(*arguments, **named)
            except LearnersLost as error:
                await _bring_back(run, error)


async def bring_engines_up(run: Run) -> None:
    """The engines to the learners' weights, under the version that these had."""
    if run.position.weight_version:
        run.publisher.version = run.position.weight_version - 1
        await on_learners(run, run.publisher.publish)


async def _bring_back(run: Run, error: LearnersLost) -> None:
    """The learners to the last commit."""
    while True:
        allowed = run.config.learner.max_restarts
        reason = str(error).splitlines()[0]
        if run.learners.restarts >= allowed:
            raise InfrastructureError(
                f"the learners were lost more often than learner.max_restarts ({allowed}): {error}"
            ) from error
        run.telemetry.say(f"the learners are lost and started again: {reason}")
        run.journal.event("learners_lost", reason=reason)
        position = find_position(run.journal, [phase.kind for phase in run.config.phases])
        weights = position.weights and str(run.directory.path / position.weights)
        try:
            await run.learners.restart(weights)
            if run.begin_on_learners is not None:
                await run.begin_on_learners()
            await replay(run, position)
            return
        except LearnersLost as again:
            error = again


async def replay(run: Run, position: Position) -> None:
    """Learners that have just begun a phase to its last commit.

    Raises:
        DataError: a batch is missing or damaged.
        InfrastructureError: the checkpoint's trainer state is, or a step failed.
    """
    if position.checkpoint:
        await run.learners.resume(run.directory.path / position.checkpoint.path)
    if position.replay:
        run.telemetry.say(
            f"replaying {len(position.replay)} committed steps from their batches, "
            f"{position.replay[0].step} to {position.step}"
        )
    for commit in position.replay:
        assert commit.batch_hash is not None
        batches = load_batches(run.directory.read_batch(commit.batch_hash))
        if commit.kind == "distill":
            await run.learners.distill_step(batches[0])
        else:
            await run.learners.policy_step(batches)
