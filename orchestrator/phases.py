"""Distillation; reinforcement and evaluation have files of their own."""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from judging.errors import DataError
from learning.windows import TrainSample
from orchestrator.commits import commit_step, end_training
from orchestrator.config import DistillPhase
from orchestrator.evaluating import evaluate_if_due
from orchestrator.material import Demonstration, demonstrations_of
from orchestrator.plan import total_steps, validation_pairs
from orchestrator.recovery import begin_on_learners, on_learners
from orchestrator.run import Run
from orchestrator.teacher import ask_teacher

VALIDATED_AT_ONCE = 256  # traces in one request to the learners


async def distill(run: Run, index: int, phase: DistillPhase) -> None:
    """Supervised fine-tuning on the traces."""
    settings, seed = phase.settings, run.config.run.seed
    found, notes = await asyncio.to_thread(
        demonstrations_of, run.config, run.directory.path, index, run.material
    )
    for note in notes:
        run.telemetry.say(note)
    traces, held_out = hold_out(found, settings.validation_fraction, seed)
    steps = total_steps(len(traces), settings.batch_size, settings.epochs, settings.max_steps)
    run.journal.begin_phase(index, "distill", steps)
    with run.telemetry.phase("distill", index, steps, done=run.position.done(index)):
        done = await begin_on_learners(
            run, index, lambda: run.learners.begin_distill(settings, steps)
        )
        await evaluate_if_due(run, index, "distill", done, steps)
        taught = None
        if settings.logits is not None and done < steps:
            taught = await ask_teacher(run, index, settings.logits, traces, done=done)
        batches = shuffled_batches(traces, settings.batch_size, seed)
        rest = islice(batches, done, None)
        for step, (_, batch) in zip(range(done + 1, steps + 1), rest, strict=False):
            run.telemetry.begin_step()
            samples = [demonstration.sample for demonstration in batch]
            if taught is not None:
                samples = [taught(sample) for sample in samples]
            is_validated = step % settings.validate_every_steps == 0 or step == steps
            validated = held_out if is_validated else ()
            metrics = await on_learners(run, _step, run, samples, validated)
            metrics["tokens"] = _tokens(samples)
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
    shutil.rmtree(run.directory.teacher(index), ignore_errors=True)


async def _step(
    run: Run, samples: Sequence[TrainSample], held_out: Sequence[Demonstration]
) -> dict[str, float]:
    """One optimizer step, and the loss of what is held out by the weights after it."""
    with run.telemetry.span("train"):
        metrics = await run.learners.distill_step(samples)
    if held_out:
        with run.telemetry.span("validate"):
            loss = await _loss(run, [demonstration.sample for demonstration in held_out])
        metrics |= {"validation/loss": loss, "validation/perplexity": math.exp(loss)}
    return metrics


async def _loss(run: Run, samples: Sequence[TrainSample]) -> float:
    """Nats a token. The learners are asked for parts, since each answer has a deadline."""
    total = 0.0
    for start in range(0, len(samples), VALIDATED_AT_ONCE):
        part = samples[start : start + VALIDATED_AT_ONCE]
        total += await run.learners.distill_loss(part) * _tokens(part)
    return total / _tokens(samples)


def _tokens(samples: Sequence[TrainSample]) -> int:
    return sum(len(sample.completion_ids) for sample in samples)


def hold_out(
    traces: Sequence[Demonstration], fraction: float, seed: int
) -> tuple[Sequence[Demonstration], Sequence[Demonstration]]:
    """The traces to train on, and those of a fraction of the pairs, which seed and content choose.

    Raises:
        DataError: none is left to train on.
    """
    uids = sorted({trace.pair_uid for trace in traces}, key=lambda uid: _place(uid, seed))
    chosen = set(uids[: validation_pairs(len(uids), fraction)])
    if len(chosen) == len(uids):
        raise DataError(
            f"distill.validation_fraction ({fraction:g}) leaves none of {len(uids)} pairs with "
            "traces to train on: lower it, or give more traces"
        )
    held_out = [trace for trace in traces if trace.pair_uid in chosen]
    return [trace for trace in traces if trace.pair_uid not in chosen], held_out


def _place(uid: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/validation/{uid}".encode()).digest()


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
