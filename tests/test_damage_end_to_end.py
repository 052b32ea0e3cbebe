"""A run of which files are spoilt while no driver is there goes on, with real learners."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from test_resume_end_to_end import ROOT, command, kill_when

from orchestrator.rundir import RunDirectory
from orchestrator.status import read_status

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
SHORTER = ["phases=[distill, evaluate]", "distill.max_steps=6", "checkpoint.keep=2"]


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_checkpoint_that_distillation_left_is_computed_again_bit_for_bit(tmp_path):
    run = RunDirectory(tmp_path / "killed")

    def evaluates() -> bool:
        return run.is_begun and read_status(run, time.time()).phase == "evaluate"

    arguments = command(tmp_path, *SHORTER)
    kill_when(arguments, evaluates, "the evaluation")
    weights = run.checkpoint_path(6) / "model.safetensors"
    before = load_file(weights)
    spoil(weights)
    done = subprocess.run(
        arguments, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert (
        "checkpoints/step-000006 is not used: model.safetensors does not have its SHA-256; it is "
        "now checkpoints/damaged-step-000006" in done.stderr
    )
    assert "writing checkpoints/step-000006 again, from checkpoints/step-000004" in done.stdout
    after = load_file(weights)
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    assert json.loads(run.summary.read_text())["status"] == "done"
    kinds = [event["event"] for event in run.read_events()]
    assert kinds.count("checkpoint_damaged") == 1
    assert kinds.count("step_committed") == 6
