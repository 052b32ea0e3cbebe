"""What the judgments on public benchmarks come to, as files: results, and a page."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.items import Item
from evaluation.judgments import StoredJudgment
from evaluation.outcome import Outcome, outcome_json, outcomes
from evaluation.report import report_page
from orchestrator.disk import atomic_writer, writing
from orchestrator.eval_config import EvalSettings
from orchestrator.eval_tables import report_of

SETTINGS_FILE = "settings.json"
JUDGMENTS_FILE, RESULTS_FILE, REPORT_FILE = "judgments.jsonl", "results.json", "report.html"
FLIPS_SHOWN = 40  # of each benchmark, on the page


def make_folder(folder: Path, made_with: Mapping[str, int]) -> None:
    """For judgments of a run's weights; none stay that were made with other settings.

    Raises:
        InfrastructureError: the disk does not take it.
    """
    path = folder / SETTINGS_FILE
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists() or json.loads(path.read_text("utf-8")) != made_with:
            (folder / JUDGMENTS_FILE).unlink(missing_ok=True)
            write_json(path, made_with)


def write_outcomes(
    folder: Path,
    model: str,
    settings: EvalSettings,
    items: Sequence[Item],
    judgments: Sequence[StoredJudgment],
    *,
    too_long: Collection[str],
    took: Mapping[str, float | int],
    facts: Mapping[str, str],
) -> list[Outcome]:
    """Adds the judgments up, and writes results and page; none if no item is left.

    Raises:
        DataError: judgments are missing or there twice.
    """
    found = outcomes(
        items,
        judgments,
        protocol=settings.protocol,
        votes=settings.votes,
        seed=settings.seed,
        too_long=too_long,
        flips=FLIPS_SHOWN,
    )
    results = {
        "model": model,
        "settings": asdict(settings),
        **took,
        "too_long": len(too_long),
        "benchmarks": [outcome_json(outcome) for outcome in found],
    }
    if found:
        write_json(folder / RESULTS_FILE, results)
        with atomic_writer(folder / REPORT_FILE) as page:
            page.write(report_page(report_of(model, facts, found)))
    return found


def write_json(path: Path, content: Any) -> None:
    with atomic_writer(path) as file:
        json.dump(content, file, indent=1, default=str)
        file.write("\n")
