"""What a run works on: the model's folder and the prompts of each phase, as token ids.

Owns the way from the configuration to `Material`; the pairs themselves, their prompts and their
split are `judging`'s. Nothing here knows of Ray.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from actors.urls import local_copy
from evaluation.items import Item
from judging.errors import DataError
from judging.presentation import balanced_order, both_orders
from judging.prompts import PromptTemplate, load_template, tokenize_prompt
from judging.readers import read_pairs
from judging.records import JudgePrompt, Order, PreferencePair, Presentation
from judging.splits import Split
from learning.windows import TrainSample
from orchestrator.benchmark_items import benchmark_items
from orchestrator.config import EvaluateSettings, RunConfig
from orchestrator.pairs import LoadedPairs, load_pairs
from orchestrator.rundir import RunDirectory
from orchestrator.vocabulary import check_teachers
from synthesis.dataset import has_traces, traces_file


@dataclass(frozen=True, slots=True)
class PairPrompts:
    """One pair's prompts in both orders."""

    pair: PreferencePair
    by_order: dict[Order, JudgePrompt]


@dataclass(frozen=True, slots=True, eq=False)
class Demonstration:
    """One trace to imitate."""

    pair_uid: str
    sample: TrainSample


@dataclass(frozen=True, slots=True)
class Material:
    split: Split
    model_path: str
    distill: tuple[Demonstration, ...]
    reinforce: tuple[PairPrompts, ...]
    heldout: tuple[PairPrompts, ...]
    benchmarks: Mapping[EvaluateSettings, Sequence[Item]]
    notes: tuple[str, ...]  # what was read and what was left out, for the person


def prepare(
    config: RunConfig,
    run_path: Path,
    share_model: Callable[[Path], str] = str,
    loaded: LoadedPairs | None = None,
) -> Material:
    """Reads or makes pairs and model, and renders every prompt once. A model that was made is
    where `share_model` puts it; pairs that are `loaded` already are not read again.

    Raises:
        DataError: data that cannot be used, or a phase that is left without any.
        ConfigurationError: a template or tokenizer that cannot render.
    """
    notes: list[str] = []
    template = load_template(config.judge.template)
    loaded = loaded or load_pairs(config)
    split = loaded.split
    notes.extend(loaded.notes)
    traces = synthesized_pairs(config, run_path, range(config.phases_ahead)) or split.distill
    model_path = _model(config, run_path, replace(split, distill=traces), template)
    tokenizer = load_tokenizer(config, model_path)
    check_teachers(config, tokenizer)
    renderer = _Renderer(template, tokenizer, config)
    material = Material(
        split=split,
        model_path=share_model(Path(model_path)) if config.model.make else model_path,
        distill=tuple(renderer.demonstrations(split.distill, notes)),
        reinforce=tuple(renderer.prompts(split.reinforce, "reinforcement", notes)),
        heldout=tuple(renderer.prompts(split.heldout, "evaluation", notes)),
        benchmarks=benchmark_items(config, notes.append),
        notes=tuple(notes),
    )
    _check_phases(config, material)
    return material


def synthesized_pairs(
    config: RunConfig, run_path: Path, phases: Iterable[int]
) -> tuple[PreferencePair, ...]:
    """The pairs with the traces that these phases of synthesis have made.

    Raises:
        DataError: none was kept.
    """
    pairs: list[PreferencePair] = []
    for index in phases:
        phase = config.phases[index]
        assert phase.kind == "synthesize"
        folder = RunDirectory(run_path).synthesis(index)
        path = traces_file(folder, phase.settings.format)
        if not has_traces(path):
            raise DataError(
                f"phase {index + 1}, synthesize, has kept no trace: see {folder}, with why "
                "each was rejected"
            )
        pairs.extend(read_pairs(path, every_trace=True))
    return tuple(pairs)


def demonstrations_of(
    config: RunConfig, run_path: Path, index: int, material: Material
) -> tuple[Sequence[Demonstration], Sequence[str]]:
    """What the phase of distillation at this index imitates, and what a person should know of it.

    Raises:
        DataError: there is nothing.
    """
    syntheses = config.syntheses_before(index)
    if not syntheses:
        return material.distill, ()
    pairs = synthesized_pairs(config, run_path, syntheses)
    notes = [f"distilling from {len(pairs):,} synthesized traces"]
    tokenizer = load_tokenizer(config, material.model_path)
    renderer = _Renderer(load_template(config.judge.template), tokenizer, config)
    made = renderer.demonstrations(pairs, notes)
    if not made:
        raise DataError(f"phase {index + 1}, distill, has no trace: {'; '.join(notes)}")
    return made, notes


def _model(config: RunConfig, run_path: Path, split: Split, template: PromptTemplate) -> str:
    """The path of the model to begin with, made on the spot if the configuration says so."""
    if config.model.make is None:
        assert config.model.path is not None, "neither model.path nor model.make"
        return config.model.path
    from learning.tiny import make_tiny_model

    folder, partial = run_path / "model", run_path / ".model.partial"
    if not folder.exists():  # else a run that is resumed has it
        shutil.rmtree(partial, ignore_errors=True)
        make_tiny_model(partial, _tokenizer_texts(split, template), config.model.make)
        partial.rename(folder)
    return str(folder)


def _tokenizer_texts(split: Split, template: PromptTemplate) -> Iterable[str]:
    """Texts of the kind that the small tokenizer will meet; nothing held out is among them."""
    for pair in islice(split.reinforce, 2000):
        presentation = Presentation(pair, "chosen_first")
        yield from (message.content for message in template.render(presentation))
    yield from (pair.trace for pair in split.distill if pair.trace)


def load_tokenizer(config: RunConfig, model_path: str) -> Any:
    """Of the run's model, which may be one that was made."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        local_copy(model_path, weights=False),
        revision=config.model.revision if config.model.make is None else None,
        trust_remote_code=config.model.trust_remote_code,
    )


@dataclass(frozen=True, slots=True)
class _Renderer:
    template: PromptTemplate
    tokenizer: Any
    config: RunConfig

    def prompts(
        self, pairs: Sequence[PreferencePair], purpose: str, notes: list[str]
    ) -> list[PairPrompts]:
        """Both orders of each pair; a pair with an overlong prompt is left out and counted."""
        limit = self.config.data.max_prompt_tokens
        rendered = [PairPrompts(pair, self._both(pair)) for pair in pairs]
        kept = [
            prompts
            for prompts in rendered
            if all(len(prompt.token_ids) <= limit for prompt in prompts.by_order.values())
        ]
        if len(kept) < len(rendered):
            notes.append(
                f"{purpose}: {len(rendered) - len(kept):,} of {len(rendered):,} pairs left out: "
                f"their prompt has more than {limit:,} tokens (data.max_prompt_tokens)"
            )
        return kept

    def demonstrations(
        self, pairs: Sequence[PreferencePair], notes: list[str]
    ) -> list[Demonstration]:
        """The pairs that have a trace, with the order it was written for."""
        made: list[Demonstration] = []
        overlong, limit = 0, self.config.trace_tokens
        for pair in pairs:
            if pair.trace is None or pair.trace_order is None:
                continue
            prompt = self._prompt(Presentation(pair, pair.trace_order)).token_ids
            trace = self.tokenizer.encode(pair.trace, add_special_tokens=False)
            completion = [*trace, self.tokenizer.eos_token_id]
            if len(prompt) + len(completion) > limit:
                overlong += 1
                continue
            sample = TrainSample(np.asarray(prompt, np.int32), np.asarray(completion, np.int32))
            made.append(Demonstration(pair.uid, sample))
        if overlong:
            notes.append(
                f"distillation: {overlong:,} traces left out: prompt and trace have more than "
                f"{limit:,} tokens together (distill.max_tokens)"
            )
        return made

    def _both(self, pair: PreferencePair) -> dict[Order, JudgePrompt]:
        return {shown.order: self._prompt(shown) for shown in both_orders(pair)}

    def _prompt(self, presentation: Presentation) -> JudgePrompt:
        messages = self.template.render(presentation)
        return tokenize_prompt(presentation, messages, self.tokenizer)


def _check_phases(config: RunConfig, material: Material) -> None:
    """Refuses a phase that is left without enough data."""
    notes = "; ".join(material.notes) or "nothing was left out"
    for index, phase in enumerate(config.phases):
        match phase.kind:
            case "synthesize":
                continue
            case "distill" if config.syntheses_before(index):
                continue
            case "distill":
                have, need = len(material.distill), 1
                what = "traces; give data.distill_path"
            case "reinforce":
                have, need = len(material.reinforce), phase.settings.prompts_per_step
                what = "pairs (reinforce.prompts_per_step); lower it or give more data"
            case "evaluate":
                have, need = len(material.heldout), 1
                what = "held-out pairs; give data.heldout_path"
        if have < need:
            raise DataError(
                f"phase {phase.kind} has {have:,} of at least {need:,} {what} ({notes})"
            )
    if config.evaluate.every_steps and not material.heldout:
        raise DataError(
            "evaluate.every_steps is set, but no held-out pair is left; give data.heldout_path "
            f"({notes})"
        )


def orders_of(
    pair: PreferencePair, seed: int, epoch: int, rule: Literal["balanced", "random", "both"]
) -> tuple[Order, ...]:
    """The orders a pair is shown in during an epoch of reinforcement, by `reward.order`."""
    match rule:
        case "both":
            return ("chosen_first", "rejected_first")
        case "random":
            return (balanced_order(pair.uid, seed + epoch),)
        case "balanced":
            first = balanced_order(pair.uid, seed)
            other: Order = "rejected_first" if first == "chosen_first" else "chosen_first"
            return (other if epoch % 2 else first,)


def probe(config: RunConfig, material: Material) -> list[int]:
    """A token sequence of the run's own kind, by which publications are proven."""
    length = config.publication.probe_tokens
    tokens: list[int] = []
    for prompts in (*material.reinforce, *material.heldout):
        for prompt in prompts.by_order.values():
            tokens.extend(prompt.token_ids)
        if len(tokens) >= length:
            break
    if not tokens:
        tokens = [int(t) for each in material.distill[:1] for t in each.sample.prompt_ids]
    return tokens[:length]
