"""Which files below a folder are those of a benchmark.

A benchmark's files are in a folder that is named like it, or have the names under which it is
published. Of several copies in one place, the whole is taken rather than its parts.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path

from evaluation.items import Benchmark
from judging.errors import DataError
from judging.readers import SUFFIXES, data_files

# Folder names without case and punctuation, such as those of the repositories and data sets.
FOLDERS: Mapping[Benchmark, tuple[str, ...]] = {
    "rewardbench": ("rewardbench",),
    "rewardbench2": ("rewardbench2",),
    "rm-bench": ("rmbench",),
    "rmb": ("rmb", "rmbdataset", "rmbrewardmodelbenchmark"),
    "judgebench": ("judgebench",),
}
# Patterns of a file's path below the folder, the first that fits any file is taken.
_PATTERNS: Mapping[Benchmark, tuple[tuple[str, ...], ...]] = {
    "rewardbench": (("*filtered[-.]*",), ("*rewardbench.*", "*reward-bench.*")),
    "rewardbench2": (("*test-*",), ("*rewardbench2.*", "*reward-bench-2.*")),
    "rm-bench": (
        ("total_dataset.*", "*/total_dataset.*"),
        tuple(
            pattern
            for name in ("chat", "math", "code", "safety-refuse", "safety-response")
            for pattern in (f"{name}_filtered.*", f"*/{name}_filtered.*")
        ),
    ),
    "rmb": (("Pairwise_set/*", "BoN_set/*", "*/Pairwise_set/*", "*/BoN_set/*"),),
    # The repository's folder outputs/ holds files that are named alike, of judgments.
    "judgebench": (
        ("*data/dataset=judgebench,*", "dataset=judgebench,*"),
        ("gpt[-.]*", "claude[-.]*", "*/gpt[-.]*", "*/claude[-.]*"),
    ),
}
# Published names that say which benchmark it is where the folder does not.
_UNMISTAKABLE: tuple[Benchmark, ...] = ("rm-bench", "rmb", "judgebench")
_DEPTH = 3  # of folders below the one that is given


def benchmark_files(benchmark: Benchmark, path: str | Path) -> list[Path]:
    """The files of a benchmark: `path` itself, or those in it or in a folder below it.

    Raises:
        DataError: there are none; says what was looked for.
    """
    path = Path(path)
    if path.is_file():
        return data_files(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder: correct the path")
    for folder in _named_folders(benchmark, path):
        if files := _readable(folder):
            return _published(benchmark, folder, files) or files
    if benchmark in _UNMISTAKABLE and (files := _published(benchmark, path, _readable(path))):
        return files
    names = " or ".join(FOLDERS[benchmark])
    published = ", ".join(pattern for patterns in _PATTERNS[benchmark] for pattern in patterns)
    looked_for = f"a folder named {names} (in any case and punctuation)"
    if benchmark in _UNMISTAKABLE:
        looked_for += f", or files named {published}"
    raise DataError(
        f"{path}: holds no files of {benchmark}: looked for {looked_for}, ending in"
        f" {', '.join(SUFFIXES)}: put them there, or name the file itself"
    )


def published_files(benchmark: Benchmark, folder: Path) -> list[Path]:
    """Those in a folder that is the benchmark's, by their published names; none if none fits."""
    return _published(benchmark, folder, _readable(folder))


def _named_folders(benchmark: Benchmark, path: Path) -> list[Path]:
    """The folder itself, then those below it, the nearest first."""
    below = [
        folder
        for folder in path.rglob("*")
        if folder.is_dir() and len(folder.relative_to(path).parts) <= _DEPTH
    ]
    below.sort(key=lambda folder: (len(folder.parts), folder))
    named = [path.resolve(), *below]
    return [folder for folder in named if _plain(folder.name) in FOLDERS[benchmark]]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _readable(folder: Path) -> list[Path]:
    try:
        return data_files(folder)
    except DataError:  # nothing in it that can be read
        return []


def _published(benchmark: Benchmark, folder: Path, files: list[Path]) -> list[Path]:
    for patterns in _PATTERNS[benchmark]:
        found = [
            file
            for file in files
            if any(
                fnmatch.fnmatchcase(file.relative_to(folder).as_posix(), pattern)
                for pattern in patterns
            )
        ]
        if found:
            return found
    return []
