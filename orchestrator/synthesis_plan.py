"""What a synthesis will ask and may cost, computed before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from judging.prompts import PromptTemplate, load_template
from orchestrator.config import RunConfig
from orchestrator.facts import Parts
from orchestrator.synthesis_rules import most_output_usd
from synthesis.functions import load_function
from synthesis.settings import Pass, SynthesizeSettings, Teacher


@dataclass(frozen=True, slots=True)
class PassPlan:
    """What a pass asks at most: about all pairs, as if those before it kept nothing."""

    teacher: str
    model: str | None
    requests_per_pair: int
    requests: int | None  # None: the data is not on this machine
    max_tries: int  # of each request
    output_tokens: int | None
    output_usd: float | None  # what these cost; None: the model has no price, or as `requests`


@dataclass(frozen=True, slots=True)
class SynthesisPlan:
    passes: tuple[PassPlan, ...]
    max_requests: int | None  # that end the phase
    max_cost_usd: float | None

    @property
    def requests(self) -> int | None:
        return _sum(each.requests for each in self.passes)

    @property
    def tries(self) -> int | None:
        return _sum(each.requests and each.requests * each.max_tries for each in self.passes)

    @property
    def output_tokens(self) -> int | None:
        return _sum(each.output_tokens for each in self.passes)


def plan_synthesis(settings: SynthesizeSettings, pairs: int | None) -> SynthesisPlan:
    """`pairs` are those that are asked about; None: nobody knows yet."""
    passes = tuple(_pass_plan(settings, each, pairs) for each in settings.passes)
    return SynthesisPlan(passes, settings.max_requests, settings.max_cost_usd)


def _pass_plan(settings: SynthesizeSettings, each: Pass, pairs: int | None) -> PassPlan:
    teacher = settings.teachers[each.teacher]
    per_pair = each.samples * (2 if settings.order == "both" else 1)
    requests = None if pairs is None else pairs * per_pair
    cost_usd = most_output_usd(settings, teacher)
    return PassPlan(
        teacher=each.teacher,
        model=teacher.model,
        requests_per_pair=per_pair,
        requests=requests,
        max_tries=teacher.max_tries,
        output_tokens=None if requests is None else requests * teacher.max_new_tokens,
        output_usd=None if requests is None or cost_usd is None else requests * cost_usd,
    )


def synthesis_lines(plan: SynthesisPlan, pairs: int | None) -> Iterator[str]:
    """The plan as text."""
    if pairs is None:
        yield "synthesize: how many pairs is not known, since the data is not on this machine"
    else:
        yield (
            f"synthesize: {pairs:,} pairs -> at most {plan.requests:,} requests "
            f"({plan.tries:,} with all tries)"
        )
    for number, each in enumerate(plan.passes, start=1):
        model = f" ({each.model})" if each.model else ""
        what = f"{each.requests_per_pair:,} to a pair"
        if each.requests is not None:
            what = f"{each.requests:,} ({what})"
        line = f"pass {number}: {each.teacher}{model}: requests at most {what}, tries of each at "
        line += f"most {each.max_tries}"
        if each.output_tokens is not None:
            line += f", output tokens at most {each.output_tokens:,}"
        yield line + ("" if each.output_usd is None else f" = ${each.output_usd:,.2f}")
    priced = [each.output_usd for each in plan.passes if each.output_usd is not None]
    if priced:
        yield (
            f"cost: at most ${sum(priced):,.2f} for output, and that of the prompts, whose tokens "
            "are not known before they are sent"
        )
    limits = []
    if plan.max_requests is not None:
        limits.append(f"max_requests ({plan.max_requests:,}, tries included)")
    if plan.max_cost_usd is not None:
        limits.append(f"max_cost_usd (${plan.max_cost_usd:,.2f})")
    if limits:
        yield f"ends earlier at {' or '.join(limits)}"


def _sum(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)


def pairs_to_ask(settings: SynthesizeSettings, parts: Parts | None) -> int | None:
    if parts is None:
        return None
    pairs = parts.to_ask if settings.of == "distill" else parts.reinforce
    return min(pairs, settings.pairs or pairs)


def load_pass_template(config: RunConfig, each: Pass) -> PromptTemplate:
    """Raises ConfigurationError if it cannot be used."""
    if each.tells_verdict:
        return load_template(each.template or "corrected", parent=config.judge.template)
    return load_template(each.template or config.judge.template)


def check_teachers(config: RunConfig) -> None:
    """Raises ConfigurationError for a pass's template or a function that cannot be used."""
    for phase in config.phases:
        if phase.kind == "synthesize":
            for each in phase.settings.passes:
                load_pass_template(config, each)
            for name, teacher in phase.settings.used.items():
                if teacher.uses.startswith(("builtin:", "import:")):
                    load_function(name, teacher.uses, teacher.options)


def engine_teachers(config: RunConfig) -> Iterator[tuple[str, str, int]]:
    """Key, folder or hub id, and context in tokens of each model that writes traces on engines of
    its own."""
    for phase in config.phases:
        if phase.kind == "synthesize":
            for name, teacher in phase.settings.used.items():
                if teacher.uses == "engines" and teacher.model is not None:
                    tokens = of_engine_teacher(config, teacher).context_tokens
                    yield f"synthesize.teachers.{name}.model", teacher.model, tokens


def of_engine_teacher(config: RunConfig, teacher: Teacher) -> RunConfig:
    """What the engines of a teacher's own model go by."""
    tokens = config.data.max_prompt_tokens + teacher.max_new_tokens
    context = config.model.context_tokens and max(config.model.context_tokens, tokens)
    model = config.model.model_copy(
        update={"path": teacher.model, "make": None, "revision": None, "context_tokens": context}
    )
    rollout = replace(config.rollout, max_new_tokens=teacher.max_new_tokens)
    return config.model_copy(update={"model": model, "rollout": rollout, "phases": ()})


def logit_teachers(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Key and folder or hub id of each model whose probabilities are learned from."""
    for phase in config.phases:
        logits = phase.settings.logits if phase.kind == "distill" else None
        if logits is not None and logits.teacher != "policy":
            yield "distill.logits.teacher", logits.teacher
