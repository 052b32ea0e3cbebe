"""What the keys of distillation must not say together; the other rules are in `config_rules`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.config import DistillPhase, RunConfig

_OF_ALL_PHASES = ("max_tokens", "validation_fraction")


def distillation(config: RunConfig) -> Iterator[str]:
    """The contradictions of all phases that distil."""
    found = [(index, phase) for index, phase in enumerate(config.phases) if phase.kind == "distill"]
    if found and config.trace_tokens > config.context_tokens:
        yield (
            f"distill.max_tokens ({config.trace_tokens}) is more than the context of "
            f"{config.context_tokens} tokens: lower it, or set model.context_tokens to "
            f"{config.trace_tokens}"
        )
    for index, phase in found:
        is_section = phase.settings == config.distill
        yield from _phase(phase, "distill" if is_section else f"phases[{index}].distill", config)


def _phase(phase: DistillPhase, name: str, config: RunConfig) -> Iterator[str]:
    settings, ranks = phase.settings, config.learner.ranks
    if settings.batch_size < ranks:
        yield (
            f"{name}.batch_size ({settings.batch_size}) is less than learner.ranks ({ranks}), so "
            "that a rank has nothing to train on: raise the first or lower the second"
        )
    if settings.logits is not None and settings.logits.weight == 0:
        yield (
            f"{name}.logits.weight is 0, so that the teacher would be asked for nothing: leave "
            f"{name}.logits out, or raise it"
        )
    for key in _OF_ALL_PHASES:
        if getattr(settings, key) != getattr(config.distill, key):
            yield (
                f"{name}.{key} ({getattr(settings, key)}) is about the traces of all phases: set "
                "it in the section distill"
            )


def longest_trained(config: RunConfig) -> dict[str, int]:
    """Tokens of the longest sequences that learners get, by what they follow from."""
    prompt, completion = config.data.max_prompt_tokens, config.rollout.max_new_tokens
    rollouts = f"data.max_prompt_tokens ({prompt}) + rollout.max_new_tokens ({completion})"
    found = {rollouts: prompt + completion} if config.has_phase("reinforce") else {}
    if config.has_phase("distill"):
        what = rollouts
        if config.distill.max_tokens is not None:
            what = f"distill.max_tokens ({config.trace_tokens})"
        elif config.model.context_tokens is not None:
            what = f"model.context_tokens ({config.trace_tokens}), as distill.max_tokens is not set"
        found[what] = config.trace_tokens
    return found
