"""Whether a run's training pairs repeat what judges are evaluated with, by `data.overlap`.

Evaluation is the run's held-out pairs, the benchmarks that it is evaluated on from `evaluate.data`,
and what is at `data.overlap_with`; what counts as repeated is the matter of `judging.overlap`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from evaluation.aggregate import BENCHMARKS, read_benchmark
from evaluation.benchmarks.finding import benchmark_files
from evaluation.benchmarks.reading import ItemReport
from evaluation.items import Benchmark, Item
from judging.errors import DataError
from judging.overlap import EvaluationSet, Overlap, evaluation_set, find_overlaps
from judging.readers import ReadReport, read_pairs
from judging.records import PreferencePair
from judging.splits import Split
from orchestrator.config import RunConfig


def check_overlap(split: Split, config: RunConfig, notes: list[str]) -> Split:
    """The split as it is to be used; what was found is added to `notes`.

    Raises:
        DataError: a path of `data.overlap_with` without benchmarks or pairs, or with damaged ones;
            all pairs for training were to be dropped.
    """
    data = config.data
    if data.overlap == "ignore":
        return split
    sets = list(_evaluation_sets(split.heldout, config, notes))
    training = (*split.distill, *split.reinforce)
    if not sets or not training:
        return split
    overlaps = find_overlaps(training, sets)
    overlapping = {number for overlap in overlaps for number in overlap.pairs}
    notes += _notes(overlaps, len(overlapping), len(training), is_dropped=data.overlap == "drop")
    if data.overlap == "report":
        return split
    if len(overlapping) == len(training):
        raise DataError(
            f"data.overlap=drop leaves none of {len(training):,} training pairs, which all repeat "
            "text of evaluation: give other pairs, or set data.overlap=report to see where"
        )
    kept = [number not in overlapping for number in range(len(training))]
    distilled = len(split.distill)
    return Split(
        _chosen(split.distill, kept[:distilled]),
        _chosen(split.reinforce, kept[distilled:]),
        split.heldout,
    )


def _chosen(pairs: Sequence[PreferencePair], kept: Sequence[bool]) -> tuple[PreferencePair, ...]:
    return tuple(pair for pair, is_kept in zip(pairs, kept, strict=True) if is_kept)


def _evaluation_sets(
    heldout: Sequence[PreferencePair], config: RunConfig, notes: list[str]
) -> Iterator[EvaluationSet]:
    if heldout:
        yield evaluation_set("held-out", ((pair.uid, pair) for pair in heldout))
    evaluated: dict[tuple[Benchmark, str], None] = {
        (name, settings.data): None
        for settings in config.evaluations
        for name in settings.benchmarks
        if settings.data is not None and Path(settings.data).exists()
    }
    on_hub = {n: None for e in config.evaluations if e.data is None for n in e.benchmarks}
    if on_hub:
        notes.append(
            f"overlap: not compared with {', '.join(on_hub)} of the hub: name the folder of its "
            "files in evaluate.data or data.overlap_with"
        )
    for name, path in evaluated:
        yield _benchmark_set(name, read_benchmark(name, path))
    for path in config.data.overlap_with:
        try:
            yield from _sets_at(path, notes)
        except DataError as error:
            raise DataError(f"data.overlap_with: {error}") from error


def _sets_at(path: str, notes: list[str]) -> Iterator[EvaluationSet]:
    """The benchmarks in a folder; else the pairs of a folder or file."""
    benchmarks: list[Benchmark] = [name for name in BENCHMARKS if _holds(path, name)]
    for benchmark in benchmarks:
        report = ItemReport()
        items = read_benchmark(benchmark, path, report)
        notes.append(f"{path}: {benchmark}: {report}")
        yield _benchmark_set(benchmark, items)
    if benchmarks:
        return
    report = ReadReport()
    try:
        pairs = list(read_pairs(path, report))
    except DataError as error:
        if not Path(path).is_dir():
            raise DataError(f"{error}; for a benchmark, name its folder") from error
        names = ", ".join(BENCHMARKS)
        raise DataError(
            f"{path} holds none of the benchmarks {names}, by the names in docs/evaluation.md, "
            f"and no pairs: {error}"
        ) from error
    notes.append(f"{path}: {report}")
    yield evaluation_set(Path(path).name, ((pair.uid, pair) for pair in pairs))


def _benchmark_set(name: Benchmark, items: Sequence[Item]) -> EvaluationSet:
    return evaluation_set(
        name, ((item.uid, each.pair) for item in items for each in item.comparisons)
    )


def _holds(path: str, benchmark: Benchmark) -> bool:
    """Of a file one cannot tell: its rows may be those of several benchmarks."""
    if not Path(path).is_dir():
        return False
    try:
        return bool(benchmark_files(benchmark, path))
    except DataError:
        return False


def _notes(
    overlaps: Sequence[Overlap], overlapping: int, training: int, *, is_dropped: bool
) -> Iterator[str]:
    if not overlapping:
        names = ", ".join(overlap.name for overlap in overlaps)
        yield f"overlap: none of {training:,} training pairs repeats text of evaluation ({names})"
        return
    counts = ", ".join(f"{overlap.name} {len(overlap.pairs):,}" for overlap in overlaps)
    yield (
        f"overlap: {overlapping:,} of {training:,} training pairs repeat text of evaluation "
        f"({counts}); they are {'dropped' if is_dropped else 'kept: data.overlap=drop drops them'}"
    )
    for overlap in overlaps:
        for example in overlap.examples:
            yield (
                f"overlap with {overlap.name}: pair {example.pair_uid} and item "
                f'{example.item_uid} share "{example.words}"'
            )
