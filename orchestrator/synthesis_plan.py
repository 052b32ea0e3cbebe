"""What a synthesis will ask and may cost, computed before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator

from judging.prompts import PromptTemplate, load_template
from orchestrator.config import RunConfig
from orchestrator.facts import Parts
from synthesis.budget import cost_nusd, price_of
from synthesis.functions import load_function
from synthesis.ledger import NUSD
from synthesis.records import Usage
from synthesis.settings import Pass, SynthesizeSettings


def most_usd(
    settings: SynthesizeSettings, presentations: int | None, prompt_tokens: int
) -> float | None:
    """If no pass but the last keeps anything, and all prompts and traces are as long as they may
    be; a prompt that shows a failed trace by that longer."""
    if settings.prices is None or presentations is None:
        return None
    nusd, longest = 0, 0
    for each in settings.passes:
        teacher = settings.teachers[each.teacher]
        tokens = prompt_tokens + (longest if each.tells_verdict else 0)
        longest = max(longest, teacher.max_new_tokens)
        price = price_of(settings.prices, teacher.model)
        usage = Usage(tokens, 0, teacher.max_new_tokens)
        is_batch = teacher.uses.endswith("-batch")
        nusd += presentations * each.samples * cost_nusd(usage, price, is_batch=is_batch)
    most = settings.max_cost_usd
    return nusd / NUSD if most is None else min(most, nusd / NUSD)


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


def engine_teachers(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Key and folder or hub id of each model that writes traces on engines of its own."""
    for phase in config.phases:
        if phase.kind == "synthesize":
            for name, teacher in phase.settings.used.items():
                if teacher.uses == "engines" and teacher.model is not None:
                    yield f"synthesize.teachers.{name}.model", teacher.model


def logit_teachers(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Key and folder or hub id of each model whose probabilities are learned from."""
    for phase in config.phases:
        logits = phase.settings.logits if phase.kind == "distill" else None
        if logits is not None and logits.teacher != "policy":
            yield "distill.logits.teacher", logits.teacher
