"""Reading and adding up a benchmark by its name.

What a benchmark's files, sections and totals are is said in its own module in
`evaluation.benchmarks`; these are the entries to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from evaluation.benchmarks import judgebench, rewardbench, rewardbench2, rm_bench, rmb
from evaluation.benchmarks.finding import benchmark_files
from evaluation.benchmarks.hub import hub_files
from evaluation.benchmarks.reading import ItemReport
from evaluation.benchmarks.result import BenchmarkResult, beats_all, comparison_scores
from evaluation.items import Benchmark, Item, Scores
from evaluation.others.judgebench import judgebench_totals
from evaluation.others.reading import Totals
from evaluation.others.rewardbench import rewardbench2_totals, rewardbench_totals
from evaluation.others.rm_bench import rm_bench_totals
from evaluation.others.rmb import rmb_totals
from judging.errors import DataError


@dataclass(frozen=True, slots=True)
class _Definition:
    read: Callable[[list[Path], ItemReport], list[Item]]
    aggregate: Callable[[Sequence[Item], Scores], BenchmarkResult]
    totals: Callable[[Path], Totals]  # from results of others


_DEFINITIONS: Mapping[Benchmark, _Definition] = {
    "rewardbench": _Definition(rewardbench.read, rewardbench.aggregate, rewardbench_totals),
    "rewardbench2": _Definition(rewardbench2.read, rewardbench2.aggregate, rewardbench2_totals),
    "rm-bench": _Definition(rm_bench.read, rm_bench.aggregate, rm_bench_totals),
    "rmb": _Definition(rmb.read, rmb.aggregate, rmb_totals),
    "judgebench": _Definition(judgebench.read, judgebench.aggregate, judgebench_totals),
}
BENCHMARKS: tuple[Benchmark, ...] = tuple(_DEFINITIONS)


def read_benchmark(
    benchmark: Benchmark, path: str | Path | None, report: ItemReport | None = None
) -> list[Item]:
    """The items of a benchmark from its file, its folder, or a folder that holds it somewhere;
    from the Hugging Face hub if `path` is None.

    Items that cannot be judged are left out and counted in `report`.

    Raises:
        DataError: no file of the benchmark is there; one is unreadable, truncated or of another
            benchmark; two items have one uid; no item is left.
    """
    files = hub_files(benchmark) if path is None else benchmark_files(benchmark, path)
    return _DEFINITIONS[benchmark].read(files, ItemReport() if report is None else report)


def aggregate(items: Sequence[Item], scores: Scores) -> BenchmarkResult:
    """The scores of one benchmark, by its own definition.

    Raises:
        DataError: no items, items of several benchmarks, or a pair without a score.
    """
    names = sorted({item.benchmark for item in items})
    if len(names) != 1:
        found = ", ".join(names) or "no items"
        raise DataError(f"a benchmark is added up by itself, here are {found}: give items of one")
    return _DEFINITIONS[items[0].benchmark].aggregate(items, scores)


def aggregate_others(benchmark: Benchmark, path: str | Path) -> Totals:
    """The totals of a file or folder of results that others computed.

    Raises:
        DataError: it cannot be read, is in no known layout, or contradicts itself.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder: correct the path")
    return _DEFINITIONS[benchmark].totals(path)


def item_score(item: Item, scores: Scores) -> float:
    """What an item is worth by itself, from 0 to 1, for intervals and tests over items.

    Of RM-Bench the mean of its nine comparisons, else the share of its being right (the product of
    its comparisons' scores). RewardBench 2's Ties are scored as a subset: for an item of them this
    is whether all correct answers beat all incorrect ones, which is one term of that score.

    Raises:
        DataError: a pair without a score.
    """
    if item.benchmark == "rm-bench":
        return fmean(comparison_scores(item, scores))
    return beats_all(item, scores)
