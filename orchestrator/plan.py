"""What a run will do, computed before anything is started: steps, batches, placement, memory.

Pure: it knows only the configuration and the facts it is given. Steps are at most those planned,
since pairs with overlong prompts are left out later, when there is a tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from judging.errors import ConfigurationError
from learning.settings import DistillSettings, GrpoSettings
from orchestrator.config import EvaluateSettings, Phase, RunConfig
from orchestrator.facts import Facts, Parts
from orchestrator.memory import (
    DRIVER_PROCESS_BYTES,
    GIB,
    VERIFIER_PROCESS_BYTES,
    Memory,
    engine_memory,
    learner_memory,
    needs_gpus,
)
from orchestrator.phase_kinds import PhaseKind
from orchestrator.synthesis_plan import SynthesisPlan, pairs_to_ask, plan_synthesis, synthesis_lines

Role = Literal["driver", "rollout worker", "learner", "verifier"]


@dataclass(frozen=True, slots=True)
class PhasePlan:
    """The arithmetic of one phase; None: unknown, because the data is not on this machine."""

    kind: PhaseKind
    pairs: int | None
    steps: int | None  # an evaluation is one step
    updates_per_step: int  # optimizer steps
    samples_per_step: int | None  # traces, rollouts or judgments
    new_tokens_per_step: int | None  # that the engines write, at most
    trained_tokens_per_step: int | None  # prompts and completions, at most
    benchmarks: tuple[
        str, ...
    ] = ()  # that the weights are evaluated on, besides the held-out pairs
    evaluated_every_steps: int | None = None  # of a phase that trains
    synthesis: SynthesisPlan | None = None  # what teachers are asked at most
    validation_pairs: int = 0  # with traces, held out of distillation besides
    teacher: str | None = None  # whose probabilities are learned from

    @property
    def updates(self) -> int | None:
        return None if self.steps is None else self.steps * self.updates_per_step


@dataclass(frozen=True, slots=True)
class ActorPlan:
    """All actors of one role."""

    role: Role
    count: int
    cpus: int  # of each
    gpus: int  # of each
    memory: Memory | None  # of each, on a GPU of each of its GPUs; None: unknown

    @property
    def total_gpus(self) -> int:
        return self.count * self.gpus


@dataclass(frozen=True, slots=True)
class Plan:
    phases: tuple[PhasePlan, ...]
    actors: tuple[ActorPlan, ...]
    parts: Parts | None
    context_tokens: int
    parameters: int | None
    parameters_source: str
    uses_gpus: bool
    is_colocated: bool

    @property
    def gpus(self) -> int:
        """Colocated actors share them."""
        return (max if self.is_colocated else sum)(actor.total_gpus for actor in self.actors)

    @property
    def host_memory_bytes(self) -> int | None:
        """Of all processes of a run without GPUs; None if it is unknown."""
        sizes = [actor.memory.total * actor.count for actor in self.actors if actor.memory]
        return sum(sizes) if len(sizes) == len(self.actors) and not self.uses_gpus else None


def total_steps(items: int, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Whole batches in so many epochs, at least one; batches run on over the end of an epoch."""
    steps = max(1, math.floor(items * epochs / batch_size))
    return steps if max_steps is None else min(steps, max_steps)


def validation_pairs(pairs: int, fraction: float) -> int:
    """How many of `pairs` with traces are held out: at least one, if any are to be."""
    return max(1, round(pairs * fraction)) if fraction and pairs else 0


def make_plan(config: RunConfig, facts: Facts) -> Plan:
    """Raises ConfigurationError if a phase has less data than one of its steps takes."""
    on_gpu = needs_gpus(config, facts.machine)
    driver = ActorPlan("driver", 1, 1, 0, Memory((("process", DRIVER_PROCESS_BYTES),)))
    actors = (
        (driver,) if config.is_driver_alone else (driver, *_actors(config, facts, on_gpu=on_gpu))
    )
    return Plan(
        phases=tuple(
            _phase_plan(config, index, phase, facts.parts)
            for index, phase in enumerate(config.phases)
        ),
        actors=actors,
        parts=facts.parts,
        context_tokens=config.context_tokens,
        parameters=facts.model.parameters,
        parameters_source=facts.model.source,
        uses_gpus=on_gpu,
        is_colocated=config.placement.mode == "colocated",
    )


def _actors(config: RunConfig, facts: Facts, *, on_gpu: bool) -> tuple[ActorPlan, ...]:
    rollout, learner = config.rollout, config.learner
    return (
        ActorPlan(
            "rollout worker",
            rollout.workers,
            1 if on_gpu else rollout.cpu_threads,
            rollout.tensor_parallel if on_gpu else 0,
            engine_memory(config, facts.model, facts.machine),
        ),
        ActorPlan(
            "learner",
            learner.ranks,
            1 if on_gpu else learner.cpu_threads,
            1 if on_gpu else 0,
            learner_memory(config, facts.model, on_gpu=on_gpu),
        ),
        ActorPlan(
            "verifier",
            config.verifier.workers,
            1,
            0,
            Memory((("process", VERIFIER_PROCESS_BYTES),)),
        ),
    )


def _phase_plan(config: RunConfig, index: int, phase: Phase, parts: Parts | None) -> PhasePlan:
    if phase.kind == "evaluate":
        tokens = config.evaluation_tokens(phase.settings)
        return _evaluate_plan(config, phase.settings, tokens, parts)
    if phase.kind == "synthesize":
        pairs = pairs_to_ask(phase.settings, parts)
        asked = plan_synthesis(phase.settings, pairs)
        return PhasePlan(
            "synthesize", pairs, None, 0, asked.requests, asked.output_tokens, 0, synthesis=asked
        )
    if phase.kind == "distill":
        plan = _distill_plan(config, phase.settings, parts, config.syntheses_before(index))
    else:
        plan = _reinforce_plan(config, phase.settings, parts, f"phases[{index}].reinforce")
    if (every := config.evaluate.every_steps) is None:
        return plan
    return replace(plan, benchmarks=config.evaluate.benchmarks, evaluated_every_steps=every)


def _distill_plan(
    config: RunConfig, settings: DistillSettings, parts: Parts | None, syntheses: tuple[int, ...]
) -> PhasePlan:
    traces, size = parts.distill if parts else None, settings.batch_size
    if syntheses:  # nobody knows how many will be kept
        traces = None
    if traces == 0:
        raise ConfigurationError(
            "phases has distill, but no pair for it has a trace: name pairs with traces in "
            "data.distill_path, or leave distill out"
        )
    held_out = validation_pairs(traces or 0, settings.validation_fraction)
    if traces is not None and held_out == traces:
        raise ConfigurationError(
            f"distill.validation_fraction ({settings.validation_fraction:g}) leaves none of "
            f"{traces} pairs with traces to train on: lower it, or give more pairs"
        )
    traces = traces and traces - held_out
    return PhasePlan(
        kind="distill",
        pairs=traces,
        steps=traces and total_steps(traces, size, settings.epochs, settings.max_steps),
        updates_per_step=1,
        samples_per_step=size,
        new_tokens_per_step=0,
        trained_tokens_per_step=size * config.trace_tokens,
        validation_pairs=held_out,
        teacher=settings.logits.teacher if settings.logits else None,
    )


def _reinforce_plan(
    config: RunConfig, settings: GrpoSettings, parts: Parts | None, name: str
) -> PhasePlan:
    pairs, size = parts.reinforce if parts else None, settings.prompts_per_step
    if pairs is not None and pairs < size:
        raise ConfigurationError(
            f"{name}.prompts_per_step ({size}) is more than the {pairs} pairs for reinforcement: "
            "lower it (and mini_batch_prompts), or give more pairs"
        )
    samples = size * settings.group_size
    return PhasePlan(
        kind="reinforce",
        pairs=pairs,
        steps=pairs and reinforce_steps(config, settings, pairs),
        updates_per_step=size // settings.mini_batch_prompts,
        samples_per_step=samples,
        new_tokens_per_step=samples * config.rollout.max_new_tokens,
        trained_tokens_per_step=samples
        * (config.data.max_prompt_tokens + config.rollout.max_new_tokens),
    )


def reinforce_steps(config: RunConfig, settings: GrpoSettings, pairs: int) -> int:
    """Of the pairs, with one in each unit of prompts."""
    size = units_per_step(config, settings)
    return total_steps(pairs, size, settings.epochs, settings.max_steps)


def units_per_step(config: RunConfig, settings: GrpoSettings) -> int:
    return settings.prompts_per_step // per_unit(config)


def per_unit(config: RunConfig) -> int:
    """Prompts that are judged and scored together: both orders of a pair, or one."""
    return 2 if config.reward.order == "both" else 1


def _evaluate_plan(
    config: RunConfig, settings: EvaluateSettings, new_tokens: int, parts: Parts | None
) -> PhasePlan:
    heldout = parts.heldout if parts else None
    if heldout == 0:
        raise ConfigurationError(
            f"phases has evaluate, but no pair is held out: raise data.heldout_fraction "
            f"({config.data.heldout_fraction:g}), or name pairs in data.heldout_path"
        )
    pairs = heldout if heldout is None else min(heldout, settings.pairs or heldout)
    judgments = None if pairs is None else 2 * pairs  # both orders
    return PhasePlan(
        kind="evaluate",
        pairs=pairs,
        steps=1,
        updates_per_step=0,
        samples_per_step=judgments,
        new_tokens_per_step=None if judgments is None else judgments * new_tokens,
        trained_tokens_per_step=0,
        benchmarks=settings.benchmarks,
    )


# ---- for people ----------------------------------------------------------------------------------


def plan_tree(plan: Plan) -> dict[str, Any]:
    """The plan as plain values, for JSON."""
    return asdict(plan) | {"gpus": plan.gpus, "host_memory_bytes": plan.host_memory_bytes}


def render_plan(plan: Plan) -> str:
    """The plan as text."""
    return "\n".join(_lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    parts = plan.parts
    yield "Data"
    if parts is None:
        yield "  unknown: not on this machine, and with it the number of steps"
    else:
        yield (
            f"  {_to_distil(parts)}, {parts.reinforce:,} to reinforce, "
            f"{parts.heldout:,} held out; those with overlong prompts are left out later"
        )
        yield from (f"  {note}" for note in parts.notes)
    yield "Model"
    yield f"  {_count(plan.parameters)} parameters ({plan.parameters_source})"
    yield f"  {plan.context_tokens:,} tokens of context"
    yield "Phases"
    for number, phase in enumerate(plan.phases, start=1):
        yield f"  {number}. {_phase_line(phase)}"
    yield "Placement"
    for actor in plan.actors:
        yield f"  {_actor_line(actor)}"
    yield f"  together: {_together(plan)}"


def _to_distil(parts: Parts) -> str:
    """All pairs of that part: a synthesis is for those without a trace too."""
    if parts.to_ask <= parts.distill:
        return f"{parts.distill:,} pairs to distil"
    return f"{parts.to_ask:,} pairs to distil ({parts.distill:,} with a trace)"


def _phase_line(phase: PhasePlan) -> str:
    line, benchmarks = _work_line(phase), ", ".join(phase.benchmarks)
    if phase.evaluated_every_steps is not None:
        line += f"; evaluated every {_plural(phase.evaluated_every_steps, 'step')}"
        return line + (f", also on {benchmarks}" if benchmarks else "")
    return line + (f"; and on {benchmarks}" if benchmarks else "")


def _work_line(phase: PhasePlan) -> str:
    if phase.synthesis is not None:
        return "\n     ".join(synthesis_lines(phase.synthesis, phase.pairs))
    if phase.kind == "evaluate":
        return (
            f"evaluate: {_number(phase.pairs)} pairs in both orders = "
            f"{_number(phase.samples_per_step)} judgments, "
            f"at most {_number(phase.new_tokens_per_step)} new tokens"
        )
    head = f"{phase.kind}: {_number(phase.pairs)} pairs -> {_number(phase.steps)} steps"
    if phase.kind == "distill":
        return (
            f"{head} of {_number(phase.samples_per_step)} traces, one optimizer step each; a step "
            f"trains on at most {_number(phase.trained_tokens_per_step)} tokens"
            + (f"; {phase.validation_pairs:,} pairs for validation" * bool(phase.validation_pairs))
            + (f"; its teacher is {phase.teacher}" if phase.teacher else "")
        )
    return (
        f"{head} of {_number(phase.samples_per_step)} rollouts with "
        f"{_plural(phase.updates_per_step, 'optimizer step')} each ({_number(phase.updates)} in "
        f"all); a step writes at most "
        f"{_number(phase.new_tokens_per_step)} tokens and trains on at most "
        f"{_number(phase.trained_tokens_per_step)}"
    )


def _actor_line(actor: ActorPlan) -> str:
    gpus = f", {_plural(actor.gpus, 'GPU')}" if actor.gpus else ""
    if actor.memory is None:
        memory = "memory unknown"
    else:
        what = " + ".join(f"{name} {_gib(size)}" for name, size in actor.memory.parts)
        if actor.role == "learner" and "activations" not in dict(actor.memory.parts):
            what += " + activations, unknown without the model's config.json"
        where = " on each GPU" if actor.gpus else ""
        memory = f"about {_gib(actor.memory.total)} GiB{where} ({what})"
    return f"{actor.count} x {actor.role}: {_plural(actor.cpus, 'CPU')}{gpus}; {memory}"


def _together(plan: Plan) -> str:
    if plan.uses_gpus:
        shared = ", shared by learners and rollout workers" if plan.is_colocated else ""
        return _plural(plan.gpus, "GPU") + shared
    total = plan.host_memory_bytes
    return "memory unknown" if total is None else f"about {_gib(total)} GiB, no GPU"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _count(value: int | None) -> str:
    if value is None:
        return "?"
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,}"


def _gib(size: int) -> str:
    return f"{size / GIB:.2g}" if size < GIB else f"{size / GIB:.1f}"
