"""Distillation of a teacher's probabilities: real engines that say them, real learners."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def run(runs: Path, name: str, *settings: str) -> Path:
    command = ["run", "configs/quickstart.yaml", f"run.dir={runs}", f"run.id={name}", *settings]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (runs / f"{name}.log").write_text(done.stdout)
    return runs / name


def test_a_student_comes_near_its_teacher(tmp_path: Path) -> None:
    """The teacher is a checkpoint of an earlier run; then the student is its own teacher.

    Not at temperature 1, at which learners and engines agree whatever is forgotten.
    """
    small = ("rollout.temperature=0.8", "rollout.workers=1", "data.generate.distill_pairs=200")
    heldout = ("data.generate.heldout_pairs=8", "output.samples=0")
    first = run(tmp_path, "first", "phases=[distill]", "distill.max_steps=30", *small, *heldout)
    (checkpoint,) = (first / "checkpoints").glob("step-000030")
    taught = (
        f"{{distill: {{max_steps: 8, logits: {{teacher: {checkpoint}, top_k: 8, weight: 1}}}}}}"
    )
    itself = "{distill: {max_steps: 2, logits: {teacher: policy}}}"
    second = run(
        tmp_path,
        "second",
        f"phases=[{taught}, {itself}, evaluate]",
        "model.make=null",
        f"model.path={first / 'model'}",
        *small,
        *heldout,
    )
    rows = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    of_other = [row["teacher_kl"] for row in steps if row["phase_index"] == 0]
    of_itself = [row["teacher_kl"] for row in steps if row["phase_index"] == 1]
    assert [len(of_other), len(of_itself)] == [8, 2]
    assert of_other[-1] < 0.8 * of_other[0]
    assert abs(of_itself[0]) < 1e-4 < of_itself[1]
    assert steps[0]["loss"] == pytest.approx(of_other[0])  # nothing else is weighed
    said = (tmp_path / "second.log").read_text()
    assert f"asking the teacher ({checkpoint}) for its 8 likeliest tokens" in said
    assert "asking the teacher (policy) for its 20 likeliest tokens" in said
    assert not list((second / "teacher").glob("*/*"))
