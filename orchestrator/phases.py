"""The three phases: distill, reinforce, evaluate. Each step is on one screen."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.fleet import RolloutFleet
from actors.learner_group import LearnerGroup
from actors.publisher import WeightPublisher
from actors.rollout import GenerationRequest
from actors.waiting import within
from evaluation.metrics import evaluate_pairs, judged_pairs
from judging.records import JudgePrompt, Judgment
from learning.advantages import group_advantages, has_zero_variance
from learning.settings import GrpoSettings
from learning.windows import TrainSample
from orchestrator.config import DistillPhase, EvaluatePhase, ReinforcePhase, RunConfig
from orchestrator.journal import RunJournal, StepCommit
from orchestrator.material import Material, order_of
from orchestrator.plan import total_steps
from orchestrator.rundir import EvaluatedPhase, Evaluation, RunDirectory, TraceRecord
from orchestrator.step_metrics import group_metrics
from orchestrator.telemetry import Telemetry
from rewards.groups import Group


@dataclass(slots=True)
class Run:
    """The parts of a running run, and how far it is."""

    config: RunConfig
    directory: RunDirectory
    material: Material
    learners: LearnerGroup
    fleet: RolloutFleet
    verifiers: Sequence[Any]  # Verifier actors
    publisher: WeightPublisher
    journal: RunJournal
    telemetry: Telemetry
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
        batches = shuffled_batches(traces, settings.batch_size, run.config.run.seed)
        for step, (_, batch) in zip(range(1, steps + 1), batches, strict=False):
            run.telemetry.begin_step()
            samples = [demonstration.sample for demonstration in batch]
            with run.telemetry.span("train"):
                metrics = await run.learners.distill_step(samples)
            metrics["tokens"] = sum(len(sample.completion_ids) for sample in samples)
            uids = [demonstration.pair_uid for demonstration in batch]
            with run.telemetry.span("commit"):
                await _commit(run, index, "distill", step, uids, metrics)
            run.telemetry.step(step, metrics)
        await run.publisher.publish()
    await _end_training(run, "distill")


# ---- reinforce ---------------------------------------------------------------------------------


async def reinforce(run: Run, index: int, phase: ReinforcePhase) -> None:
    """Reinforcement learning with verifiable rewards, synchronous and on-policy."""
    settings, pairs = phase.settings, run.material.reinforce
    steps = total_steps(len(pairs), settings.prompts_per_step, settings.epochs, settings.max_steps)
    run.journal.begin_phase(index, "reinforce", steps)
    prompts = _prompt_stream(run)
    by_uid = {p.presentation.uid: p for pair in pairs for p in pair.by_order.values()}
    with run.telemetry.phase("reinforce", index, steps):
        reference = run.checkpoint or run.material.model_path
        await run.learners.begin_reinforce(settings, steps, reference)
        for step in range(1, steps + 1):
            run.telemetry.begin_step()
            groups, dropped = await _collect(run, settings, prompts, index, step)
            with run.telemetry.span("train"):
                batches = mini_batches(groups, by_uid, settings)
                metrics = await run.learners.policy_step(batches)
            with run.telemetry.span("publish"):
                publication = await run.publisher.publish()
            metrics |= group_metrics(groups)
            metrics |= {"dropped_groups": dropped, "probe_gap": publication.probe_gap}
            with run.telemetry.span("commit"):
                records = trace_records(groups)
                run.directory.write_traces(index, "reinforce", step, records)
                uids = [group.judgments[0].presentation.pair.uid for group in groups]
                await _commit(run, index, "reinforce", step, uids, metrics)
            run.telemetry.step(step, metrics)
            run.telemetry.samples(step, records)
    await _end_training(run, "reinforce")


async def _collect(
    run: Run,
    settings: GrpoSettings,
    prompts: Iterator[JudgePrompt],
    phase: int,
    step: int,
) -> tuple[list[Group], int]:
    """One step's groups, and how many were dropped because all their scores agreed.

    Dropped groups are replaced by fresh prompts (DAPO, 2503.14476, section 3.2) for a bounded
    number of rounds; what is still missing then is made up by dropped groups, so that the batch
    keeps its size.
    """
    kept: list[Group] = []
    dropped: list[Group] = []
    rounds = settings.max_replacement_rounds if settings.drop_zero_variance else 1
    for attempt in range(rounds):
        missing = settings.prompts_per_step - len(kept)
        fresh = [next(prompts) for _ in range(missing)]
        with run.telemetry.span("generate"):
            groups = await _judge(run, fresh, settings, f"{phase}/{step}/{attempt}")
        for group in groups:
            is_dropped = settings.drop_zero_variance and has_zero_variance(group.scores)
            (dropped if is_dropped else kept).append(group)
        if len(kept) == settings.prompts_per_step:
            break
    filled = kept + dropped[: settings.prompts_per_step - len(kept)]
    return filled, len(dropped) - (len(filled) - len(kept))


def _prompt_stream(run: Run) -> Iterator[JudgePrompt]:
    """Prompts for as long as they are asked for: each epoch shuffled, orders balanced."""
    seed = run.config.run.seed
    for epoch, batch in shuffled_batches(run.material.reinforce, 1, seed):
        (prompts,) = batch
        yield prompts.by_order[order_of(prompts.pair, seed, epoch)]


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
        prompts = [prompt for pair in pairs for prompt in pair.by_order.values()]
        tokens = run.config.evaluation_tokens(phase)
        groups = await _judge(run, prompts, None, f"{index}", max_new_tokens=tokens)
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


# ---- what phases share -------------------------------------------------------------------------


async def _judge(
    run: Run,
    prompts: Sequence[JudgePrompt],
    settings: GrpoSettings | None,
    place: str,
    *,
    max_new_tokens: int | None = None,
) -> list[Group]:
    """Generates and scores a group for each prompt, in order; greedy without `settings`."""
    rollout = run.config.rollout

    async def judge(number: int, prompt: JudgePrompt) -> Group:
        request = GenerationRequest(
            presentation_uid=prompt.presentation.uid,
            token_ids=prompt.token_ids,
            samples=settings.group_size if settings else 1,
            seed=_seed(run.config.run.seed, place, prompt.presentation.uid),
            temperature=rollout.temperature if settings else 0.0,
            max_new_tokens=max_new_tokens or rollout.max_new_tokens,
        )
        rollouts = await run.fleet.generate(request)
        verifier = run.verifiers[number % len(run.verifiers)]
        with run.telemetry.span("score"):
            scored = await within(
                run.config.deadlines.score_s,
                "the verifier, one group",
                verifier.score.remote(prompt.presentation, rollouts),
            )
        judgments = (
            Judgment(prompt.presentation, rollout, outcome.trace)
            for rollout, outcome in zip(rollouts, scored, strict=True)
        )
        results = tuple(outcome.result for outcome in scored)
        return Group(prompt.presentation.uid, tuple(judgments), results)

    return list(await asyncio.gather(*(judge(n, prompt) for n, prompt in enumerate(prompts))))


async def _commit(
    run: Run, phase: int, kind: str, step: int, uids: Sequence[str], metrics: dict[str, float]
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
        batch_hash=None,
        committed_at_s=time.time(),
    )
    run.journal.commit_step(commit)
    every = run.config.checkpoint.every_steps
    if every and step % every == 0:
        await write_checkpoint(run)


async def write_checkpoint(run: Run) -> None:
    """The learners' weights as a Hugging Face folder, under the count of training steps."""
    path = run.directory.checkpoint_path(run.steps)
    if not path.exists():
        with run.directory.checkpoint(run.steps) as folder:
            await run.learners.save(folder)
        run.journal.record_checkpoint(str(path.relative_to(run.directory.path)), run.steps)
    run.checkpoint = str(path)


async def _end_training(run: Run, kind: EvaluatedPhase) -> None:
    run.trained = kind
    await write_checkpoint(run)


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
