"""The three phases: distill, reinforce, evaluate. Each step is on one screen."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from actors.fleet import RolloutFleet
from actors.learner_group import LearnerGroup
from actors.publisher import WeightPublisher
from actors.rollout import GenerationRequest
from evaluation.metrics import evaluate_pairs, judged_pairs
from judging.errors import InfrastructureError
from judging.records import JudgePrompt, Rollout
from learning.advantages import group_advantages, has_zero_variance
from learning.batches import dump_batches
from learning.settings import GrpoSettings
from learning.windows import TrainSample
from orchestrator.config import (
    DistillPhase,
    EvaluatePhase,
    ReinforcePhase,
    ReinforceSettings,
    RunConfig,
)
from orchestrator.journal import RunJournal, StepCommit
from orchestrator.material import Material, orders_of
from orchestrator.plan import reinforce_steps, total_steps
from orchestrator.resume import Position, drawn_units, drop_old, take_up
from orchestrator.reward_commands import RewardCommands
from orchestrator.reward_panel import RewardPanel
from orchestrator.rundir import EvaluatedPhase, Evaluation, RunDirectory, TraceRecord
from orchestrator.step_metrics import group_metrics, reward_metrics
from orchestrator.telemetry import Telemetry
from rewards.groups import Group, has_samples

# Prompts that are judged and scored together: one, or both orders of a pair.
Unit = tuple[JudgePrompt, ...]


@dataclass(slots=True)
class Run:
    """The parts of a running run, and how far it is."""

    config: RunConfig
    directory: RunDirectory
    material: Material
    learners: LearnerGroup
    fleet: RolloutFleet
    panel: RewardPanel
    commands: RewardCommands
    publisher: WeightPublisher
    journal: RunJournal
    telemetry: Telemetry
    position: Position = field(default_factory=Position)  # where this driver took the run up
    evaluations: list[Evaluation] = field(default_factory=list)
    trained: EvaluatedPhase = "base"  # the last training phase
    steps: int = 0  # training steps of all phases
    checkpoint: str | None = None  # the newest one


# ---- distill -----------------------------------------------------------------------------------


async def distill(run: Run, index: int, phase: DistillPhase) -> None:
    """Supervised fine-tuning on the traces."""
    settings, traces = phase.settings, run.material.distill
    steps = total_steps(len(traces), settings.batch_size, settings.epochs, settings.max_steps)
    run.journal.begin_phase(index, "distill", steps)
    with run.telemetry.phase("distill", index, steps):
        await run.learners.begin_distill(settings.optimizer, steps)
        done = await take_up(run, index)
        batches = shuffled_batches(traces, settings.batch_size, run.config.run.seed)
        rest = islice(batches, done, None)
        for step, (_, batch) in zip(range(done + 1, steps + 1), rest, strict=False):
            run.telemetry.begin_step()
            samples = [demonstration.sample for demonstration in batch]
            with run.telemetry.span("train"):
                metrics = await run.learners.distill_step(samples)
            metrics["tokens"] = sum(len(sample.completion_ids) for sample in samples)
            uids = [demonstration.pair_uid for demonstration in batch]
            with run.telemetry.span("commit"):
                await _commit(run, index, "distill", step, uids, metrics, [samples])
            run.telemetry.step(step, metrics)
        await run.publisher.publish()
    await _end_training(run, index, "distill", steps)


# ---- reinforce ---------------------------------------------------------------------------------


async def reinforce(run: Run, index: int, phase: ReinforcePhase) -> None:
    """Reinforcement learning with verifiable rewards, synchronous and on-policy."""
    settings, pairs = phase.settings, run.material.reinforce
    steps = reinforce_steps(run.config, settings, len(pairs))
    run.journal.begin_phase(index, "reinforce", steps)
    by_uid = {p.presentation.uid: p for pair in pairs for p in pair.by_order.values()}
    with run.telemetry.phase("reinforce", index, steps):
        reference = run.checkpoint or run.material.model_path
        await run.learners.begin_reinforce(settings, steps, reference)
        done = await take_up(run, index)
        units = islice(_unit_stream(run), drawn_units(run, index), None)
        for step in range(done + 1, steps + 1):
            await run.commands.apply(index, step)
            weights = run.panel.weights(settings, (step - 1) / max(1, steps - 1))
            run.journal.record_rewards(run.panel.describe(weights))
            run.telemetry.begin_step()
            groups, dropped = await _collect(run, settings, units, weights, f"{index}/{step}")
            with run.telemetry.span("train"):
                batches = mini_batches(groups, by_uid, settings)
                metrics = await run.learners.policy_step(batches)
            with run.telemetry.span("publish"):
                publication = await run.publisher.publish()
            metrics |= group_metrics(groups) | reward_metrics(groups, weights)
            metrics |= {"dropped_groups": dropped, "probe_gap": publication.probe_gap}
            metrics["verifier_restarts"] = await run.panel.restarts()
            with run.telemetry.span("commit"):
                records = trace_records(groups)
                run.directory.write_traces(index, "reinforce", step, records)
                uids = [group.judgments[0].presentation.pair.uid for group in groups]
                await _commit(run, index, "reinforce", step, uids, metrics, batches)
            run.telemetry.step(step, metrics)
            run.telemetry.samples(step, records)
    await _end_training(run, index, "reinforce", steps)


async def _collect(
    run: Run,
    settings: ReinforceSettings,
    units: Iterator[Unit],
    weights: Mapping[str, float],
    place: str,
) -> tuple[list[Group], int]:
    """One step's groups, and how many were dropped.

    Groups with too few scored samples are replaced by fresh prompts, and so are those whose scores
    all agree if `drop_zero_variance` is set (DAPO, 2503.14476, section 3.2), for a bounded number
    of rounds. What is still missing then is made up by groups that agree, so that the batch keeps
    its size, but never by groups without scores.
    """
    kept: list[list[Group]] = []  # units: the two groups of a pair stay together
    agreeing: list[list[Group]] = []
    failed = 0
    per_unit = 2 if run.config.reward.order == "both" else 1
    wanted = settings.prompts_per_step // per_unit
    for attempt in range(settings.max_replacement_rounds):
        fresh = [next(units) for _ in range(wanted - len(kept))]
        scored = await _judge(run, fresh, settings, f"{place}/{attempt}", weights)
        await run.panel.check_failures([group for unit in scored for group in unit], weights)
        for unit in scored:
            if not all(has_samples(group, run.config.reward.min_samples) for group in unit):
                failed += 1
            elif settings.drop_zero_variance and all(has_zero_variance(g.scores) for g in unit):
                agreeing.append(unit)
            else:
                kept.append(unit)
        if len(kept) == wanted:
            break
    filled = kept + agreeing[: wanted - len(kept)]
    if not filled:
        raise InfrastructureError(
            f"no group of the step has reward.min_samples ({run.config.reward.min_samples}) scored "
            f"samples after {settings.max_replacement_rounds} rounds of prompts"
        )
    dropped = failed + len(agreeing) - (len(filled) - len(kept))
    return [group for unit in filled for group in unit], dropped * per_unit


def _unit_stream(run: Run) -> Iterator[Unit]:
    """Prompts for as long as they are asked for: each epoch shuffled, in the orders configured."""
    seed, rule = run.config.run.seed, run.config.reward.order
    for epoch, batch in shuffled_batches(run.material.reinforce, 1, seed):
        (prompts,) = batch
        yield tuple(prompts.by_order[o] for o in orders_of(prompts.pair, seed, epoch, rule))


def mini_batches(
    groups: Sequence[Group], prompts: Mapping[str, JudgePrompt], settings: GrpoSettings
) -> list[list[TrainSample]]:
    """The groups' samples with their advantages, an optimizer step's worth each."""
    per_group = [_samples(group, prompts, settings) for group in groups]
    size = settings.mini_batch_prompts
    return [
        [sample for samples in per_group[start : start + size] for sample in samples]
        for start in range(0, len(groups), size)
    ]


def _samples(
    group: Group, prompts: Mapping[str, JudgePrompt], settings: GrpoSettings
) -> list[TrainSample]:
    advantages = group_advantages(group.scores, normalize_std=settings.normalize_std)
    return [
        TrainSample(
            prompt_ids=np.asarray(prompts[judgment.presentation.uid].token_ids, np.int32),
            completion_ids=judgment.rollout.token_ids,
            advantage=advantage,
            rollout_logprobs=judgment.rollout.logprobs,
        )
        for judgment, advantage in zip(group.judgments, advantages, strict=True)
        if advantage is not None  # a failed reward takes no part
    ]


# ---- evaluate ----------------------------------------------------------------------------------


async def evaluate(run: Run, index: int, phase: EvaluatePhase) -> None:
    """Greedy judging of held-out pairs, each in both orders."""
    pairs = run.material.heldout[: phase.settings.pairs]
    run.journal.begin_phase(index, "evaluate", None)
    with run.telemetry.phase("evaluate", index, None):
        units: list[Unit] = [tuple(pair.by_order.values()) for pair in pairs]
        tokens = run.config.evaluation_tokens(phase)
        judged = await _judge(run, units, None, f"{index}", None, max_new_tokens=tokens)
        groups = [group for unit in judged for group in unit]
        result = evaluate_pairs(
            judged_pairs(judgment for group in groups for judgment in group.judgments),
            seed=run.config.run.seed,
        )
        evaluation = Evaluation(run.trained, run.steps, result)
        run.evaluations.append(evaluation)
        records = trace_records(groups)
        run.directory.write_traces(index, "evaluate", run.steps, records)
        run.journal.record_evaluation(evaluation)
        run.telemetry.evaluation(evaluation)
        run.telemetry.samples(1, records)
    run.journal.end_phase(index, run.publisher.version)


# ---- what phases share -------------------------------------------------------------------------


async def _judge(
    run: Run,
    units: Sequence[Unit],
    settings: GrpoSettings | None,
    place: str,
    weights: Mapping[str, float] | None,
    *,
    max_new_tokens: int | None = None,
) -> list[list[Group]]:
    """Generates and scores the groups of each unit, in order; greedy without `settings`."""
    rollout = run.config.rollout

    async def sample(prompt: JudgePrompt) -> list[Rollout]:
        request = GenerationRequest(
            presentation_uid=prompt.presentation.uid,
            token_ids=prompt.token_ids,
            samples=settings.group_size if settings else 1,
            seed=_seed(run.config.run.seed, place, prompt.presentation.uid),
            temperature=rollout.temperature if settings else 0.0,
            max_new_tokens=max_new_tokens or rollout.max_new_tokens,
        )
        with run.telemetry.span("generate"):
            return await run.fleet.generate(request)

    async def judge(unit: Unit) -> list[Group]:
        rollouts = await asyncio.gather(*(sample(prompt) for prompt in unit))
        sampled = [(p.presentation, r) for p, r in zip(unit, rollouts, strict=True)]
        with run.telemetry.span("score"):
            return await run.panel.score(sampled, weights)

    return list(await asyncio.gather(*(judge(unit) for unit in units)))


async def _commit(
    run: Run,
    phase: int,
    kind: str,
    step: int,
    uids: Sequence[str],
    metrics: dict[str, float],
    batches: Sequence[Sequence[TrainSample]],
) -> None:
    """Writes the step down, and a checkpoint if one is due."""
    run.steps += 1
    metrics["weight_version"] = run.publisher.version
    commit = StepCommit(
        phase=phase,
        kind=kind,
        step=step,
        weight_version=run.publisher.version,
        consumed=tuple(uids),
        metrics=metrics,
        batch_hash=run.directory.write_batch(dump_batches(batches)),
        committed_at_s=time.time(),
    )
    run.journal.commit_step(commit)
    every = run.config.checkpoint.every_steps
    if every and step % every == 0:
        await write_checkpoint(run, phase, step)


async def write_checkpoint(run: Run, phase: int, step: int) -> Path:
    """The learners' state as a Hugging Face folder, under the count of training steps."""
    path = run.directory.checkpoint_path(run.steps)
    if not path.exists():
        with run.directory.checkpoint(run.steps) as folder:
            await run.learners.save(folder)
    relative = str(path.relative_to(run.directory.path))
    run.journal.record_checkpoint(relative, run.steps, phase=phase, phase_step=step)
    drop_old(run.directory, run.journal, phase, keep=run.config.checkpoint.keep)
    return path


async def _end_training(run: Run, index: int, kind: EvaluatedPhase, steps: int) -> None:
    run.trained = kind
    run.checkpoint = str(await write_checkpoint(run, index, steps))
    run.journal.end_phase(index, run.publisher.version)


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


def trace_records(groups: Sequence[Group]) -> list[TraceRecord]:
    return [
        TraceRecord.of(judgment, result)
        for group in groups
        for judgment, result in zip(group.judgments, group.results, strict=True)
    ]


def _seed(run_seed: int, place: str, uid: str) -> int:
    """A prompt's own seed, so that a sample does not depend on what else is sampled."""
    digest = hashlib.sha256(f"{run_seed}/{place}/{uid}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
