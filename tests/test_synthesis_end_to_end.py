"""Teachers on real engines: the run's own policy, killed as it writes, then another model."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from driving import ROOT, drive, gavel_run, kill_when

from judging.quickstart import QuickstartTask, generate
from judging.readers import read_pairs, write_pairs
from judging.traces import parse_trace
from orchestrator.rundir import RunDirectory
from orchestrator.status import read_status

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
PAIRS, SAMPLES = 200, 2
CHECKS = {"weights": False, "quotes": False}  # so small a model seldom quotes rightly
SHORT = {
    "data": {"generate": {"reinforce_pairs": 600, "heldout_pairs": 16}},
    "learner": {"ranks": 1},
    "rollout": {"workers": 1},
    "output": {"samples": 0, "tensorboard": False},
}
BY_ITSELF = {
    "passes": [{"teacher": "self", "samples": SAMPLES}],
    "of": "reinforce",
    "pairs": PAIRS,
    "order": "both",
    "checks": CHECKS,
}
PHASES = [
    {"distill": {"max_steps": 45}},
    {"reinforce": {"max_steps": 2, "prompts_per_step": 16, "mini_batch_prompts": 16}},
    {"distill": {"epochs": 1, "batch_size": 16, "optimizer": {"learning_rate": 1.0e-4}}},
]


def answers(run: Path, phase: int) -> dict[str, tuple[str, int]]:
    """Text and tries of each request of a run that no driver works on."""
    with closing(sqlite3.connect(run / f"synthesis/{phase}/ledger.sqlite")) as ledger:
        rows = ledger.execute("SELECT key, text, tries FROM requests WHERE text IS NOT NULL")
        return {key: (text, tries) for key, text, tries in rows}


@dataclass(frozen=True)
class Finished:
    run: Path
    said: str  # by the last driver
    before: dict[str, tuple[str, int]]  # what was answered when the one before was killed


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Killed while the policy writes, and taken up with another choice of what is kept."""
    folder = tmp_path_factory.mktemp("runs")
    run = RunDirectory(folder / "own")

    def keeping(keep: str) -> list[str]:
        by_itself = {"synthesize": {**BY_ITSELF, "keep": keep}}
        phases = [*PHASES[:2], by_itself, *PHASES[2:]]
        tree = {"extends": str(ROOT / "configs/self-distillation.yaml"), "phases": phases, **SHORT}
        tree["run"] = {"id": "own", "dir": str(folder)}
        (folder / "own.yaml").write_text(yaml.safe_dump(tree))
        return gavel_run(folder / "own.yaml")

    def writes() -> bool:
        status = read_status(run, time.time())
        return status.phase == "synthesize" and status.step >= PAIRS / 10

    kill_when(keeping("shortest"), writes, "a tenth of the synthesis")
    before = answers(run.path, 2)
    return Finished(run.path, drive([*keeping("reward"), "--resume"]), before)


def test_what_the_policy_has_written_is_not_asked_again(finished: Finished) -> None:
    after = answers(finished.run, 2)
    assert 0 < len(finished.before) < len(after) == PAIRS * 2 * SAMPLES
    assert {key: after[key] for key in finished.before} == finished.before
    assert "other settings than before" in finished.said


def test_its_traces_are_right_in_both_orders_and_the_next_phase_learns_from_them(
    finished: Finished,
) -> None:
    summary = json.loads((finished.run / "synthesis/2/summary.json").read_text())
    assert summary["asked"] == PAIRS
    assert 0 < summary["kept"] < PAIRS
    assert summary["kept"] * 2 == summary["traces"]  # equal texts of the two orders count twice
    pairs = list(read_pairs(finished.run / "synthesis/2/dataset/traces.jsonl", every_trace=True))
    assert len(pairs) == summary["traces"]
    shown = [(pair.uid, pair.trace_order) for pair in pairs]
    assert len(set(shown)) == len(shown)
    for pair in pairs:
        letter = parse_trace(str(pair.trace)).verdict.letter
        assert letter == ("A" if pair.trace_order == "chosen_first" else "B")
    assert f"distilling from {len(pairs)} synthesized traces" in finished.said
    lines = (finished.run / "metrics.jsonl").read_text().splitlines()
    steps = [row["step"] for row in map(json.loads, lines) if row.get("phase_index") == 3]
    assert steps == list(range(1, len(steps) + 1))
    assert steps


def test_a_model_on_engines_of_its_own_needs_no_run_of_its_own(
    finished: Finished, tmp_path: Path
) -> None:
    asked = 24
    write_pairs(tmp_path / "pairs.jsonl", generate(QuickstartTask(seed=3)).reinforce[:asked])
    checkpoint = max((finished.run / "checkpoints").iterdir())
    tree = {
        "run": {"id": "taught", "dir": str(tmp_path)},
        "phases": ["synthesize"],
        "judge": {"template": "compact"},
        "data": {
            "path": str(tmp_path / "pairs.jsonl"),
            "distill_fraction": 1.0,
            "heldout_fraction": 0.0,
            "overlap": "ignore",
            "max_prompt_tokens": 96,
        },
        "model": {"dtype": "fp32"},
        "rollout": {"workers": 1, "kv_cache_gib": 0.25},
        "output": {"tensorboard": False},
        "synthesize": {
            "teachers": {
                "strong": {"uses": "engines", "model": str(checkpoint), "max_new_tokens": 64}
            },
            "passes": [{"teacher": "strong", "samples": 2}],
            "checks": CHECKS,
        },
    }
    (tmp_path / "taught.yaml").write_text(yaml.safe_dump(tree))
    drive(gavel_run(tmp_path / "taught.yaml"))
    summary = json.loads((tmp_path / "taught/synthesis/0/summary.json").read_text())
    assert summary["asked"] == asked
    assert 0 < summary["kept"] == summary["traces"]
    (teacher,) = summary["teachers"]
    assert (teacher["teacher"], teacher["model"]) == ("strong", str(checkpoint))
    assert teacher["answers"] == asked * 2
    assert teacher["output_tokens"] > 0
