"""Learners that are lost, while the run goes on: started anew, and brought to where they were.

They start from the newest checkpoint and take the committed steps after it once more, from the
batches on disk; what was being done is then done again. Engines and verifiers go on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from actors.learner_group import LearnerGroup, LearnersLost
from judging.errors import InfrastructureError
from learning.batches import load_batches
from orchestrator.config import RunConfig
from orchestrator.journal import RunJournal
from orchestrator.material import Material
from orchestrator.position import Position
from orchestrator.resume import position_now
from orchestrator.run import Run
from orchestrator.rundir import RunDirectory
from orchestrator.telemetry import Telemetry

P = ParamSpec("P")
T = TypeVar("T")


async def go_to(run: Run) -> None:
    """The run's counts and engines to where it is taken up; nothing for a new run."""
    position = run.position
    run.steps, run.trained = position.steps, position.trained
    if position.before:
        run.checkpoint = str(run.directory.place(position.before.path))
    if position.phase > run.config.phases_ahead or position.step:
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
                parts = (run.learners, run.directory, position, run.telemetry)
                await replay(*parts, between=run.stop.check)
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
        position = await asyncio.to_thread(position_now, run.config, run.journal, run.directory)
        for damage in position.damaged:
            run.telemetry.say(f"checkpoint {damage.path} is not used: {damage.what}")
        if position.lost or position.rebuilds:
            raise InfrastructureError(
                f"{error}; and what is needed to bring the learners back is damaged: go on with "
                "--resume"
            ) from error
        weights = position.weights and str(run.directory.place(position.weights))
        try:
            await run.learners.restart(weights)
            if run.begin_on_learners is not None:
                await run.begin_on_learners()
            await replay(run.learners, run.directory, position, run.telemetry)
            return
        except LearnersLost as again:
            error = again


async def replay(
    learners: LearnerGroup,
    directory: RunDirectory,
    position: Position,
    telemetry: Telemetry,
    *,
    between: Callable[[], None] = lambda: None,
) -> None:
    """The learners, in a phase just begun, to where its committed steps end.

    Raises:
        Whatever `between` two steps raises.
        DataError: a batch is missing or damaged.
        InfrastructureError: the checkpoint's trainer state is, or a step failed.
    """
    if position.checkpoint:
        await learners.resume(directory.place(position.checkpoint.path))
    if position.replay:
        telemetry.say(
            f"replaying {len(position.replay)} committed steps from their batches, "
            f"{position.replay[0].step} to {position.step}"
        )
    for commit in position.replay:
        assert commit.batch_hash is not None
        telemetry.vitals.sign()
        between()
        batches = load_batches(
            await directory.in_background(directory.read_batch, commit.batch_hash)
        )
        if commit.kind == "distill":
            await learners.distill_step(batches[0])
        else:
            await learners.policy_step(batches)


async def write_again(
    learners: LearnerGroup,
    config: RunConfig,
    material: Material,
    directory: RunDirectory,
    journal: RunJournal,
    telemetry: Telemetry,
    lost: Position,
) -> None:
    """The last checkpoint of a phase that has ended, from what `Position.rebuilds` says.

    The learners hold the weights of `lost.weights`, and end with those of the checkpoint.
    """
    phase, steps = config.phases[lost.phase], lost.steps + lost.step
    path = directory.checkpoint_name(steps)
    telemetry.say(f"writing {path} again, from {lost.weights or 'the model of the run'}")
    total_steps = journal.total_steps(lost.phase)
    assert total_steps is not None
    if phase.kind == "distill":
        await learners.begin_distill(phase.settings, total_steps)
    elif phase.kind == "reinforce":
        before = lost.before
        reference = str(directory.place(before.path)) if before else material.model_path
        await learners.begin_reinforce(phase.settings, total_steps, reference)
    await replay(learners, directory, lost, telemetry)
    async with directory.checkpoint(steps) as folder:
        await learners.save(folder)
    journal.record_checkpoint(path, steps, phase=lost.phase, phase_step=lost.step)
