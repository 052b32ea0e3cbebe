"""Distillation; reinforcement and evaluation have files of their own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from orchestrator.commits import commit_step, end_training
from orchestrator.config import DistillPhase
from orchestrator.evaluating import evaluate_if_due
from orchestrator.material import demonstrations_of
from orchestrator.plan import total_steps
from orchestrator.recovery import begin_on_learners, on_learners
from orchestrator.run import Run


async def distill(run: Run, index: int, phase: DistillPhase) -> None:
    """Supervised fine-tuning on the traces."""
    settings = phase.settings
    traces, notes = await asyncio.to_thread(
        demonstrations_of, run.config, run.directory.path, index, run.material
    )
    for note in notes:
        run.telemetry.say(note)
    steps = total_steps(len(traces), settings.batch_size, settings.epochs, settings.max_steps)
    run.journal.begin_phase(index, "distill", steps)
    with run.telemetry.phase("distill", index, steps, done=run.position.done(index)):
        done = await begin_on_learners(
            run, index, lambda: run.learners.begin_distill(settings.optimizer, steps)
        )
        await evaluate_if_due(run, index, "distill", done, steps)
        batches = shuffled_batches(traces, settings.batch_size, run.config.run.seed)
        rest = islice(batches, done, None)
        for step, (_, batch) in zip(range(done + 1, steps + 1), rest, strict=False):
            run.telemetry.begin_step()
            samples = [demonstration.sample for demonstration in batch]
            with run.telemetry.span("train"):
                metrics = await on_learners(run, run.learners.distill_step, samples)
            metrics["tokens"] = sum(len(sample.completion_ids) for sample in samples)
            uids = [demonstration.pair_uid for demonstration in batch]
            with run.telemetry.span("commit"):
                await commit_step(
                    run,
                    index,
                    "distill",
                    step,
                    uids=uids,
                    drawn=step * settings.batch_size,
                    metrics=metrics,
                    batches=[samples],
                )
            run.telemetry.step(step, metrics)
            await evaluate_if_due(run, index, "distill", step, steps)
            run.stop.check()
        await on_learners(run, run.publisher.publish)
    await end_training(run, index, "distill", steps)


def shuffled_batches(items: Sequence[Any], size: int, seed: int) -> Iterator[tuple[int, list[Any]]]:
    """(epoch, batch) without end; batches run on over the end of an epoch."""
    batch: list[Any] = []
    epoch = 0
    while True:
        order = list(range(len(items)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for place in order:
            batch.append(items[place])
            if len(batch) == size:
                yield epoch, batch
                batch = []
        epoch += 1
