"""Evaluating a run's weights on its own engines: in phases for it, and between steps of training.

Held-out pairs are judged in both orders, and public benchmarks where they are asked for. The
checkpoint that is best by `checkpoint.best_by` is kept.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from evaluation.harness import JudgmentLog, judge_all, missing, presentations
from evaluation.metrics import evaluate_pairs, judged_pairs
from judging.errors import DataError
from judging.prompts import load_template
from orchestrator.benchmarks import JUDGMENTS_FILE, make_folder, write_outcomes
from orchestrator.commits import write_checkpoint
from orchestrator.config import EvaluatePhase, EvaluateSettings
from orchestrator.eval_config import EvalSettings
from orchestrator.eval_engines import EngineJudge, requests_in_flight
from orchestrator.journal_records import Best
from orchestrator.material import load_tokenizer
from orchestrator.measurements import EvaluatedPhase, Evaluation
from orchestrator.phase_kinds import TRAINING
from orchestrator.recovery import on_learners
from orchestrator.run import Run
from orchestrator.trace_record import trace_records
from orchestrator.units import Sampling, Unit, UnitJudge
from rewards.groups import Group


async def evaluate(run: Run, index: int, phase: EvaluatePhase) -> None:
    """A phase for it."""
    run.journal.begin_phase(index, "evaluate", None)
    with run.telemetry.phase("evaluate", index, None):
        await _evaluate(run, index, 0, run.trained, phase.settings)
    run.journal.end_phase(index, run.publisher.version)


async def evaluate_if_due(
    run: Run, index: int, kind: EvaluatedPhase, step: int, steps: int
) -> None:
    """After `step` of `steps` of a training phase, by `evaluate.every_steps`; not where the next
    phase evaluates anyway."""
    settings, phases = run.config.evaluate, run.config.phases
    if not settings.every_steps or step == 0 or step % settings.every_steps:
        return
    is_next = index + 1 < len(phases) and phases[index + 1].kind == "evaluate"
    if step == steps and is_next:
        return
    run.stop.check()  # a driver that takes the run up evaluates here
    await _evaluate(run, index, step, kind, settings)


async def _evaluate(
    run: Run, index: int, step: int, trained: EvaluatedPhase, settings: EvaluateSettings
) -> None:
    """Once, whichever driver it is; `step` is that of the phase."""
    if any((made.made_in, made.step) == (index, run.steps) for made in run.evaluations):
        return
    if step:
        run.telemetry.say(f"evaluating the weights after step {step}")
    if step and trained == "distill":  # whose steps publish nothing
        await on_learners(run, run.publisher.publish)
    tokens, seed = run.config.evaluation_tokens(settings), run.config.run.seed
    groups = await _judge_heldout(run, index, settings.pairs, tokens)
    judged = judged_pairs(judgment for group in groups for judgment in group.judgments)
    benchmarks: dict[str, float] = {}
    if settings.benchmarks:
        benchmarks = await _judge_benchmarks(run, index, settings, tokens)
    result = evaluate_pairs(judged, seed=seed)
    kinds = [phase.kind for phase in run.config.phases[: index + 1]]
    trained_in = max((i for i, kind in enumerate(kinds) if kind in TRAINING), default=None)
    evaluation = Evaluation(trained, run.steps, result, index, benchmarks, trained_in)
    records = trace_records(groups)
    run.directory.write_traces(index, "evaluate", run.steps, records)
    await _record(run, index, step, evaluation)
    run.evaluations.append(evaluation)
    run.telemetry.evaluation(evaluation)
    if not step:
        run.telemetry.samples(1, records)


async def _judge_heldout(run: Run, index: int, pairs: int | None, tokens: int) -> list[Group]:
    units: list[Unit] = [tuple(each.by_order.values()) for each in run.material.heldout[:pairs]]
    sampling = Sampling(1, 0.0, tokens, run.config.run.seed)
    judge = UnitJudge(run.fleet, run.panel, run.telemetry, sampling)
    room = asyncio.Semaphore(max(1, requests_in_flight(run.config.rollout) // 2))  # of both orders

    async def judged(unit: Unit) -> list[Group]:
        async with room:
            return await judge.judge(unit, f"{index}", None)

    found = await run.stop.while_waited_for(asyncio.gather(*map(judged, units)))
    return [group for unit in found for group in unit]


async def _judge_benchmarks(
    run: Run, index: int, settings: EvaluateSettings, tokens: int
) -> dict[str, float]:
    """Their totals. What an earlier driver has had judged is not judged again."""
    config, model_path = run.config, run.material.model_path
    items = run.material.benchmarks[settings]
    folder = run.directory.benchmarks(index, run.steps)
    limits = {"max_new_tokens": tokens, "max_prompt_tokens": config.data.max_prompt_tokens}
    make_folder(folder, limits)
    asked = EvalSettings(
        benchmarks=settings.benchmarks,
        data=None if settings.data is None else Path(settings.data),
        seed=config.run.seed,
        limit=settings.items,
    )
    judge = EngineJudge(
        run.fleet,
        load_template(config.judge.template),
        await asyncio.to_thread(load_tokenizer, config, model_path),
        max_prompt_tokens=config.data.max_prompt_tokens,
        max_new_tokens=tokens,
        temperature=0.0,
        seed=config.run.seed,
    )
    pairs = (each.pair for item in items for each in item.comparisons)
    shown = presentations(pairs, protocol=asked.protocol, seed=asked.seed)
    with JudgmentLog(folder / JUDGMENTS_FILE) as log:
        judging = judge_all(
            missing(shown, asked.votes, log.has),
            judge,
            log,
            in_flight=requests_in_flight(config.rollout),
            strict_tail=config.judge.strict_tail,
            show=lambda judgments: run.telemetry.vitals.sign(),
        )
        too_long = await run.stop.while_waited_for(judging)
        judgments = log.all()
    model = f"{run.directory.run_id}, step {run.steps}"
    parts = (folder, model, asked, items, judgments)
    found = await asyncio.to_thread(write_outcomes, *parts, too_long=too_long, took={}, facts={})
    totals = {outcome.benchmark: outcome.result.total for outcome in found}
    if missed := [name for name in settings.benchmarks if name not in totals]:
        raise DataError(
            f"all prompts of {', '.join(missed)} are longer than {config.data.max_prompt_tokens:,} "
            "tokens (data.max_prompt_tokens): take it out of evaluate.benchmarks, and go on with "
            "--resume"
        )
    return dict(totals)


async def _record(run: Run, index: int, step: int, evaluation: Evaluation) -> None:
    """Into the journal, and as the best if it is."""
    by, before = run.config.checkpoint.best_by, run.journal.best()
    if by is None or not run.steps or not _is_better(evaluation.score(by), by, before):
        run.journal.record_evaluation(evaluation)
        return
    await write_checkpoint(run, index, step)
    path = run.directory.checkpoint_name(run.steps)
    run.journal.record_evaluation(evaluation, Best(path, run.steps, by, evaluation.score(by)))
    known = {checkpoint.path for checkpoint in run.journal.checkpoints()}
    if before is not None and before.path not in known:
        await run.directory.in_background(run.directory.hide_checkpoint, before.path)
        await run.directory.in_background(run.directory.sweep)
    run.telemetry.say(f"kept as the best by {by}: {run.directory.place(path)}")


def _is_better(score: float, by: str, best: Best | None) -> bool:
    return best is None or best.by != by or score > best.score
