"""Benchmarks from the Hugging Face hub, by what its cache holds: there is no network in tests."""

import json
from pathlib import Path

import benchmark_samples as samples
import pytest

from evaluation.aggregate import read_benchmark
from judging.errors import DataError


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def snapshot(cache: Path, repository: str) -> Path:
    """As the hub's own client lays it out."""
    folder = cache / f"datasets--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc123")
    return folder / "snapshots" / "abc123"


@pytest.mark.parametrize(
    ("benchmark", "repository", "file", "rows"),
    [
        (
            "rewardbench",
            "allenai/reward-bench",
            "data/filtered-00000-of-00001.parquet",
            samples.rewardbench_rows(),
        ),
        (
            "rewardbench2",
            "allenai/reward-bench-2",
            "data/test-00000-of-00001.parquet",
            samples.rewardbench2_rows(),
        ),
        ("rm-bench", "THU-KEG/RM-Bench", "total_dataset.json", samples.rm_bench_rows("chat")),
        (
            "judgebench",
            "ScalerLab/JudgeBench",
            "data/gpt-00000-of-00001.jsonl",
            samples.judgebench_rows(),
        ),
    ],
)
def test_the_published_files_are_read(cache, benchmark, repository, file, rows):
    folder = snapshot(cache, repository)
    samples.write(folder / file, rows)
    (folder / "README.json").write_text(json.dumps({"not": "rows"}))
    assert read_benchmark(benchmark, None) == read_benchmark(benchmark, folder / file)


def test_what_cannot_be_fetched_is_named(cache):
    with pytest.raises(DataError, match=r"THU-KEG/RM-Bench cannot be fetched .*: try again where"):
        read_benchmark("rm-bench", None)
    with pytest.raises(DataError, match="do not publish it on the Hugging Face hub"):
        read_benchmark("rmb", None)
    (snapshot(cache, "THU-KEG/RM-Bench")).mkdir(parents=True)
    with pytest.raises(DataError, match="holds none of the files"):
        read_benchmark("rm-bench", None)
