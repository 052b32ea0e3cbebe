"""The items of public benchmarks, read from a folder. Imports nothing heavy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from evaluation.aggregate import read_benchmark
from evaluation.benchmarks.reading import ItemReport
from evaluation.items import Benchmark, Item
from orchestrator.config import EvaluateSettings, RunConfig


def benchmark_items(
    config: RunConfig, say: Callable[[str], object], *, with_hub: bool = True
) -> Mapping[EvaluateSettings, list[Item]]:
    """Of each kind of evaluation in a run; raises as `read_items`."""
    return {
        settings: read_items(
            settings.benchmarks,
            None if settings.data is None else Path(settings.data),
            limit=settings.items,
            seed=config.run.seed,
            say=say,
        )
        for settings in dict.fromkeys(config.evaluations)
        if settings.benchmarks and (with_hub or settings.data)
    }


def read_items(
    benchmarks: Sequence[Benchmark],
    data: Path | None,
    *,
    limit: int | None,
    seed: int,
    say: Callable[[str], object],
) -> list[Item]:
    """The items of all benchmarks, of each at most `limit`, in `data` or, if that is None, on the
    Hugging Face hub; says what is left out.

    Raises:
        DataError: the files cannot be used.
    """
    items: list[Item] = []
    for benchmark in benchmarks:
        report = ItemReport()
        read = read_benchmark(benchmark, data, report)
        say(f"{benchmark}: {report}")
        for reason in report.first_left_out:
            say(f"  left out: {reason}")
        items += sorted(read, key=partial(_draw, seed))[:limit]
    return items


def _draw(seed: int, item: Item) -> bytes:
    """A place by chance, the same for every judge."""
    return hashlib.sha256(f"{seed}/{item.uid}".encode("utf-8", "surrogatepass")).digest()
