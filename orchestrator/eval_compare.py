"""`gavel eval compare`: what two evaluations have in common, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evaluation.comparing import Compared, ItemScore, compare
from judging.errors import DataError
from orchestrator.benchmarks import RESULTS_FILE

_ALIKE = ("protocol", "votes")  # else the scores are of different kinds


def compare_folders(a: Path, b: Path) -> tuple[Compared, tuple[str, str]]:
    """The differences, and the models' names.

    Raises:
        DataError: a folder has no results, they were made by different protocols, or have no item
            in common.
    """
    results = [_results(folder) for folder in (a, b)]
    for name in _ALIKE:
        first, second = (result["settings"][name] for result in results)
        if first != second:
            raise DataError(
                f"{a} has {name} {first}, {b} has {second}: evaluate one of them like the other"
            )
    scores = [_item_scores(result) for result in results]
    compared = compare(*scores, seed=results[0]["settings"]["seed"])
    return compared, (results[0]["model"], results[1]["model"])


def _results(folder: Path) -> Any:
    path = folder / RESULTS_FILE
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}): name the folder of an evaluation that has "
            "ended"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: no JSON ({error}): evaluate again") from error


def _item_scores(results: Any) -> list[ItemScore]:
    return [ItemScore(**row) for each in results["benchmarks"] for row in each["item_scores"]]
