"""The pairs of a run: where they come from, and which part of the run each is for."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from judging.errors import DataError
from judging.mixing import SourcePairs, mix, read_source
from judging.quickstart import generate
from judging.readers import ReadReport, read_pairs
from judging.records import PreferencePair
from judging.splits import Split, split_by_source, split_pairs
from orchestrator.config import RunConfig
from orchestrator.overlap import check_overlap


@dataclass(frozen=True, slots=True)
class LoadedPairs:
    split: Split
    notes: tuple[str, ...]  # what was read, left out and found in evaluation, for the person
    reports: Mapping[str, ReadReport]  # by source or path
    overlapping: Mapping[str, int]  # training pairs left out by data.overlap, by source


def load_pairs(config: RunConfig) -> LoadedPairs:
    """The pairs of each part, the same for the same data and `run.seed`.

    `data.path`, or the mix of `data.sources`, gives up a part to distillation unless there is
    `data.distill_path`, and a held-out part unless there is `data.heldout_path`, whatever the
    phases are: a later run with the same seed then finds the same parts. Pairs for training that
    repeat evaluation are reported or left out, by `data.overlap`; generated problems are not
    compared, whose parts share their phrases.

    Raises:
        DataError: data that is missing or malformed, or a phase without the traces it needs.
        ConfigurationError: more generated problems than there are.
    """
    data, seed = config.data, config.run.seed
    if data.generate is not None:
        made = generate(data.generate)
        return LoadedPairs(Split(made.distill, made.reinforce, made.heldout), (), {}, {})
    notes: list[str] = []
    reports: dict[str, ReadReport] = {}
    if data.sources is not None:
        pairs, deal, origin = _mix(config, notes, reports), split_by_source, "data.sources"
    else:
        assert data.path is not None, "the configuration's rules ask for it"
        pairs, deal, origin = _read(data.path, notes, reports, data.limit), split_pairs, data.path
    random.Random(seed).shuffle(pairs)
    split = deal(
        pairs[: data.limit],
        distill_fraction=0.0 if data.distill_path else data.distill_fraction,
        heldout_fraction=0.0 if data.heldout_path else data.heldout_fraction,
        seed=seed,
    )
    if data.distill_path:
        split = replace(split, distill=tuple(_read(data.distill_path, notes, reports)))
    if data.heldout_path:
        split = replace(split, heldout=tuple(_read(data.heldout_path, notes, reports)))
    takes_traces = any(
        phase.kind == "distill" and not config.syntheses_before(index)
        for index, phase in enumerate(config.phases)
    )
    if takes_traces and not any(pair.trace for pair in split.distill):
        origin = data.distill_path or f"{origin} (data.distill_fraction of it)"
        raise DataError(
            f"{origin}: none of {len(split.distill)} pairs for distillation has a trace: name "
            "pairs with traces in data.distill_path, or leave distill out of phases"
        )
    kept = check_overlap(split, config, notes)
    return LoadedPairs(kept, tuple(notes), reports, _training(split) - _training(kept))


def _training(split: Split) -> Counter[str]:
    return Counter(pair.source for pair in (*split.distill, *split.reinforce))


def _read(
    path: str, notes: list[str], reports: dict[str, ReadReport], limit: int | None = None
) -> list[PreferencePair]:
    """All pairs; those over the limit, which a shuffle chooses, are counted already."""
    report = reports[path] = ReadReport()
    pairs = list(read_pairs(path, report))
    report.kept = min(len(pairs), limit or len(pairs))
    report.over_limit = len(pairs) - report.kept
    notes.append(f"{path}: {report}")
    return pairs


def _mix(
    config: RunConfig, notes: list[str], reports: dict[str, ReadReport]
) -> list[PreferencePair]:
    data = config.data
    assert data.sources is not None
    read: dict[str, SourcePairs] = {}
    for name, source in data.sources.items():
        try:
            read[name] = read_source(name, source)
        except DataError as error:
            raise DataError(f"data.sources.{name}: {error}") from error
    mixed = mix(read, similarity=data.near_duplicates, limit=data.limit, seed=config.run.seed)
    for name, each in read.items():
        reports[name] = each.report
        notes.append(f"data.sources.{name}: {each.report}")
        if each.unmet:
            notes.append(
                f"data.sources.{name}: no row has {', '.join(each.unmet)}, which its filters name"
            )
    return mixed
