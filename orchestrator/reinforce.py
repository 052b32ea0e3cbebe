"""Reinforcement learning with verifiable rewards.

Two pumps and a bounded buffer: the rollout pump keeps units of prompts in flight, and the loop
below takes a step's worth of them, trains, publishes and commits. With `max_staleness: 0` the pump
waits for each publication, which is synchronous and on-policy; with more, it generates meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from judging.errors import GavelError
from judging.records import JudgePrompt
from learning.advantages import group_advantages, has_zero_variance
from learning.settings import GrpoSettings
from learning.windows import TrainSample
from orchestrator.commits import commit_step, end_training
from orchestrator.config import ReinforcePhase, ReinforceSettings
from orchestrator.evaluating import evaluate_if_due
from orchestrator.material import orders_of
from orchestrator.open_work import OpenWork
from orchestrator.phases import shuffled_batches
from orchestrator.plan import per_unit, reinforce_steps, units_per_step
from orchestrator.recovery import begin_on_learners, on_learners
from orchestrator.resume import drawn_units
from orchestrator.rollout_pump import Judged, RolloutPump
from orchestrator.run import Run
from orchestrator.schedule import Batch, Outcome, Schedule
from orchestrator.step_metrics import age_metrics, group_metrics, reward_metrics
from orchestrator.stopping import AskedToStop
from orchestrator.trace_record import trace_records
from orchestrator.units import Sampling, Unit, UnitJudge
from rewards.groups import Group, has_samples


async def reinforce(run: Run, index: int, phase: ReinforcePhase) -> None:
    """All steps of a phase, or those that are left."""
    settings, pairs = phase.settings, run.material.reinforce
    steps = reinforce_steps(run.config, settings, len(pairs))
    run.journal.begin_phase(index, "reinforce", steps)
    with run.telemetry.phase("reinforce", index, steps, done=run.position.done(index)):
        reference = run.checkpoint or run.material.model_path
        done = await begin_on_learners(
            run, index, lambda: run.learners.begin_reinforce(settings, steps, reference)
        )
        rollouts = Rollouts(run, index, settings)
        await rollouts.go_to(done + 1, steps)
        async with rollouts.pump(steps - done) as pump:
            await evaluate_if_due(run, index, "reinforce", done, steps)
            for step in range(done + 1, steps + 1):
                run.telemetry.begin_step()
                with run.telemetry.span("wait"):
                    version = run.publisher.version
                    batch = await run.stop.while_waited_for(pump.batch(version))
                this = Step(rollouts, step, batch, rollouts.weights)
                await this.learn()
                if step < steps:
                    await rollouts.go_to(step + 1, steps)
                pump.trained()
                await this.commit(open_units=pump.open)
                await evaluate_if_due(run, index, "reinforce", step, steps)
                run.stop.check()
    await end_training(run, index, "reinforce", steps)


@dataclass(slots=True)
class Rollouts:
    """What the pump generates, and how it is scored at present."""

    run: Run
    index: int  # of the phase
    settings: ReinforceSettings
    weights: Mapping[str, float] = field(default_factory=dict)  # of each reward
    prompts: Mapping[str, JudgePrompt] = field(init=False)  # by the presentation's uid
    open_work: OpenWork = field(init=False)
    _judged: list[Group] = field(default_factory=list)  # since failures were last looked at

    def __post_init__(self) -> None:
        run, every_s = self.run, self.run.config.checkpoint.open_work_every_s
        self.open_work = OpenWork(run.directory, run.journal, self.index, every_s=every_s)
        pairs = self.run.material.reinforce
        self.prompts = {p.presentation.uid: p for pair in pairs for p in pair.by_order.values()}

    async def go_to(self, step: int, steps: int) -> None:
        """Between two steps: what people asked of the rewards, and their weights from now on."""
        await self.run.commands.apply(self.index, step)
        self.weights = self.run.panel.weights(self.settings, (step - 1) / max(1, steps - 1))
        self.run.journal.record_rewards(self.run.panel.describe(self.weights))

    @asynccontextmanager
    async def pump(self, steps: int) -> AsyncIterator[RolloutPump[Unit, list[Group]]]:
        """Generates while the block lasts; what no step has used by a stop is written down."""
        run, settings = self.run, self.settings
        drawn, most = drawn_units(run, self.index), settings.max_open_prompts
        schedule: Schedule[list[Group]] = Schedule(
            units_per_step(run.config, settings),
            max_staleness=settings.max_staleness,
            max_rounds=settings.max_replacement_rounds,
            max_open=most and most // per_unit(run.config),
            steps=steps,
            drawn=drawn,
        )
        version = run.publisher.version
        shown = {uid: prompt.presentation for uid, prompt in self.prompts.items()}
        strict_tail = run.config.judge.strict_tail
        left = self.open_work.recover(drawn, version, shown, strict_tail=strict_tail)
        if left:
            run.telemetry.say(f"taking up {len(left)} finished groups that no step has used yet")
        recovered = {t: (self._outcome(g), list(g), oldest_version(g)) for t, g in left.items()}
        units = islice(unit_stream(run), drawn, None)
        async with RolloutPump(schedule, units, self._judge, recovered) as pump:
            try:
                yield pump
            except AskedToStop:
                try:
                    self.open_work.write()
                except GavelError as error:  # then it is generated again
                    run.telemetry.say(f"open work is not written down: {error}")
                raise

    async def _judge(self, ticket: int, unit: Unit) -> Judged[list[Group]]:
        run, settings, rollout = self.run, self.settings, self.run.config.rollout
        sampling = Sampling(
            settings.group_size, rollout.temperature, rollout.max_new_tokens, run.config.run.seed
        )
        judge = UnitJudge(run.fleet, run.panel, run.telemetry, sampling)
        groups = await judge.judge(unit, f"{self.index}/{ticket}", self.weights)
        self._judged += groups
        if len(self._judged) >= settings.prompts_per_step:
            judged, self._judged = self._judged, []
            await run.panel.check_failures(judged, self.weights)
        self.open_work.keep(ticket, groups)
        return self._outcome(groups), groups, oldest_version(groups)

    def _outcome(self, groups: Sequence[Group]) -> Outcome:
        if not all(has_samples(group, self.run.config.reward.min_samples) for group in groups):
            return Outcome.FAILED
        # DAPO, 2503.14476, section 3.2
        if self.settings.drop_zero_variance and all(has_zero_variance(g.scores) for g in groups):
            return Outcome.AGREEING
        return Outcome.KEPT


@dataclass(slots=True)
class Step:
    """One step, from its units to its commit."""

    rollouts: Rollouts
    number: int
    batch: Batch[list[Group]]
    weights: Mapping[str, float]  # of each reward
    metrics: dict[str, float] = field(default_factory=dict)
    batches: list[list[TrainSample]] = field(default_factory=list)

    @property
    def groups(self) -> list[Group]:
        return [group for unit in self.batch.units for group in unit]

    async def learn(self) -> None:
        """The learners step, and the engines get their weights."""
        run = self.rollouts.run
        self.batches = mini_batches(self.groups, self.rollouts.prompts, self.rollouts.settings)
        self.metrics |= age_metrics(self.groups, run.publisher.version)
        await on_learners(run, self._step_and_publish)

    async def _step_and_publish(self) -> None:
        run = self.rollouts.run
        with run.telemetry.span("train"):
            self.metrics |= await run.learners.policy_step(self.batches)
        with run.telemetry.span("publish"):
            publication = await run.publisher.publish()
        if publication.probe_gap is not None:
            self.metrics["probe_gap"] = publication.probe_gap

    async def commit(self, *, open_units: int) -> None:
        """Writes down what the step was."""
        run, index = self.rollouts.run, self.rollouts.index
        groups, metrics = self.groups, self.metrics
        metrics |= group_metrics(groups) | reward_metrics(groups, self.weights)
        per = per_unit(run.config)
        metrics |= {
            "dropped_groups": self.batch.dropped * per,
            "stale_groups": self.batch.stale * per,
            "open_groups": open_units * per,
            "verifier_restarts": await run.panel.restarts(),
            "engines": run.fleet.working,
            "engine_restarts": run.fleet.restarts,
            "learner_restarts": run.learners.restarts,
        }
        with run.telemetry.span("commit"):
            records = trace_records(groups)
            run.directory.write_traces(index, "reinforce", self.number, records)
            await commit_step(
                run,
                index,
                "reinforce",
                self.number,
                uids=[group.judgments[0].presentation.pair.uid for group in groups],
                drawn=self.batch.drawn,
                metrics=metrics,
                batches=self.batches,
            )
            self.rollouts.open_work.used(self.batch.drawn)
        run.telemetry.step(self.number, metrics)
        run.telemetry.samples(self.number, records)


def unit_stream(run: Run) -> Iterator[Unit]:
    """Prompts for as long as they are asked for: each epoch shuffled, in the orders configured."""
    seed, rule = run.config.run.seed, run.config.reward.order
    for epoch, batch in shuffled_batches(run.material.reinforce, 1, seed):
        (prompts,) = batch
        yield tuple(prompts.by_order[o] for o in orders_of(prompts.pair, seed, epoch, rule))


def oldest_version(groups: Sequence[Group]) -> int:
    """The lowest weight version that wrote a token of the groups."""
    return min(j.rollout.weight_version_min for group in groups for j in group.judgments)


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
