"""The pairs of a run: where they come from, and which part of the run each is for."""

from __future__ import annotations

import random
from dataclasses import dataclass

from judging.errors import DataError
from judging.quickstart import generate
from judging.readers import ReadReport, read_pairs
from judging.records import PreferencePair
from judging.splits import Split, split_pairs
from orchestrator.config import RunConfig
from orchestrator.overlap import check_overlap


@dataclass(frozen=True, slots=True)
class LoadedPairs:
    split: Split
    notes: tuple[str, ...]  # what was read, left out and found in evaluation, for the person


def load_pairs(config: RunConfig) -> LoadedPairs:
    """The pairs of each part, the same for the same data and `run.seed`.

    `data.path` gives up a part to distillation unless there is `data.distill_path`, and a held-out
    part unless there is `data.heldout_path`, whatever the phases are: a later run with the same
    seed then finds the same parts. Pairs for training that repeat evaluation are reported or left
    out, by `data.overlap`; generated problems are not compared, whose parts share their phrases.

    Raises:
        DataError: data that is missing or malformed, or a phase without the traces it needs.
        ConfigurationError: more generated problems than there are.
    """
    data, seed = config.data, config.run.seed
    if data.generate is not None:
        made = generate(data.generate)
        return LoadedPairs(Split(made.distill, made.reinforce, made.heldout), ())
    assert data.path is not None, "the configuration's rules ask for data.path or data.generate"
    notes: list[str] = []
    pairs = _read(data.path, notes)
    random.Random(seed).shuffle(pairs)
    split = split_pairs(
        pairs[: data.limit],
        distill_fraction=0.0 if data.distill_path else data.distill_fraction,
        heldout_fraction=0.0 if data.heldout_path else data.heldout_fraction,
        seed=seed,
    )
    distill = tuple(_read(data.distill_path, notes)) if data.distill_path else split.distill
    heldout = tuple(_read(data.heldout_path, notes)) if data.heldout_path else split.heldout
    if config.has_phase("distill") and not any(pair.trace for pair in distill):
        origin = data.distill_path or f"{data.path} (data.distill_fraction of it)"
        raise DataError(
            f"{origin}: none of {len(distill)} pairs for distillation has a trace: name pairs "
            "with traces in data.distill_path, or leave distill out of phases"
        )
    split = check_overlap(Split(distill, split.reinforce, heldout), config, notes)
    return LoadedPairs(split, tuple(notes))


def _read(path: str, notes: list[str]) -> list[PreferencePair]:
    report = ReadReport()
    pairs = list(read_pairs(path, report))
    notes.append(f"{path}: {report}")
    return pairs
