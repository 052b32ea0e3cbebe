"""Writing a step down, and the checkpoints between steps."""

from __future__ import annotations

import time
from collections.abc import Sequence

from actors.urls import Place
from learning.batches import dump_batches
from learning.windows import TrainSample
from orchestrator.journal_records import StepCommit
from orchestrator.measurements import EvaluatedPhase
from orchestrator.recovery import on_learners
from orchestrator.resume import drop_old
from orchestrator.run import Run


async def commit_step(
    run: Run,
    phase: int,
    kind: str,
    step: int,
    *,
    uids: Sequence[str],
    drawn: int,
    metrics: dict[str, float],
    batches: Sequence[Sequence[TrainSample]],
) -> None:
    """Writes the step down, and a checkpoint if one is due."""
    run.steps += 1
    batch_hash = await run.directory.in_background(run.directory.write_batch, dump_batches(batches))
    metrics["weight_version"] = run.publisher.version
    commit = StepCommit(
        phase=phase,
        kind=kind,
        step=step,
        weight_version=run.publisher.version,
        consumed=tuple(uids),
        drawn=drawn,
        metrics=metrics,
        batch_hash=batch_hash,
        committed_at_s=time.time(),
    )
    run.journal.commit_step(commit)
    run.committed = commit
    every = run.config.checkpoint.every_steps
    if every and step % every == 0:
        await write_checkpoint(run, phase, step)


async def write_checkpoint(run: Run, phase: int, step: int) -> Place:
    """The learners' state as a Hugging Face folder, under the count of training steps."""
    path = run.directory.checkpoint_name(run.steps)
    if all(known.path != path for known in run.journal.checkpoints()):
        await on_learners(run, _save, run)
        run.journal.record_checkpoint(path, run.steps, phase=phase, phase_step=step)
    directory, keep = run.directory, run.config.checkpoint.keep
    await directory.in_background(drop_old, directory, run.journal, phase, keep=keep)
    await directory.in_background(directory.mirror, run.telemetry.say)
    return directory.place(path)


async def checkpoint_what_stands(run: Run) -> None:
    """Between two steps: a checkpoint of the newest one, if there is none yet."""
    if run.committed is not None:
        await write_checkpoint(run, run.committed.phase, run.committed.step)


async def _save(run: Run) -> None:
    async with run.directory.checkpoint(run.steps) as folder:
        await run.learners.save(folder)


async def end_training(run: Run, index: int, kind: EvaluatedPhase, steps: int) -> None:
    """The phase is done: its checkpoint is what later ones begin with."""
    run.trained = kind
    run.checkpoint = str(await write_checkpoint(run, index, steps))
    run.journal.end_phase(index, run.publisher.version)
