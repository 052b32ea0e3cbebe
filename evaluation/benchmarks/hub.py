"""The files of a benchmark as its authors publish them on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evaluation.benchmarks.finding import published_files
from evaluation.items import Benchmark
from judging.errors import DataError
from judging.readers import SUFFIXES

REPOSITORIES: Mapping[Benchmark, str] = {
    "rewardbench": "allenai/reward-bench",
    "rewardbench2": "allenai/reward-bench-2",
    "rm-bench": "THU-KEG/RM-Bench",
    "judgebench": "ScalerLab/JudgeBench",
}


def hub_files(benchmark: Benchmark) -> list[Path]:
    """In the hub's cache, fetched if they are not there or there are newer ones.

    Raises:
        DataError: the benchmark is not on the hub, the hub does not answer, or the files that it
            has are others than expected.
    """
    if benchmark not in REPOSITORIES:
        raise DataError(
            f"{benchmark}: its authors do not publish it on the Hugging Face hub: fetch its "
            "repository, and name the folder"
        )
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository = REPOSITORIES[benchmark]
    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    try:
        folder = Path(snapshot_download(repository, repo_type="dataset", allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, httpx.HTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{benchmark}: {repository} cannot be fetched from the Hugging Face hub ({reason}): "
            "try again where there is a network, or name a folder with its files"
        ) from error
    if files := published_files(benchmark, folder):
        return files
    raise DataError(
        f"{benchmark}: {repository} on the Hugging Face hub holds none of the files that are "
        f"expected: fetch them by hand, and name the folder ({folder} is what there is)"
    )
