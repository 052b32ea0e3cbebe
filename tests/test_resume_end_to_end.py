"""A run whose driver is killed goes on from what it committed, and computes what it would have; so
it does where a checkpoint was spoilt while no driver was there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from driving import ROOT, drive, gavel_run, kill_when
from safetensors.numpy import load_file

from actors.environment import learner_environment
from learning.settings import LearnerSettings
from orchestrator.journal import RunJournal
from orchestrator.rundir import RunDirectory
from orchestrator.status import read_status
from orchestrator.store import open_store

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(900)]
SHORT = [
    "run.id=killed",
    "phases=[distill, evaluate, reinforce, evaluate]",
    "data.generate.heldout_pairs=16",
    "data.generate.reinforce_pairs=600",
    "distill.max_steps=12",
    "data.generate.distill_pairs=900",
    "distill.logits={teacher: policy, top_k: 4}",
    "distill.validation_fraction=0.1",
    "distill.validate_every_steps=4",
    "reinforce.max_steps=5",
    "reinforce.prompts_per_step=8",
    "reinforce.mini_batch_prompts=4",
    "learner.ranks=1",
    "rollout.workers=1",
    "checkpoint.every_steps=2",
    "output.samples=0",
    "rollout.worker=benchmarks.stand_in:StandInWorker",  # starts sooner than vLLM
]


def command(runs: Path, *more: str) -> list[str]:
    return gavel_run("configs/quickstart.yaml", f"run.dir={runs}", *SHORT, *more)


def steps(run: Path, phase: str) -> list[dict]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if row["phase"] == phase and "phase_index" in row]


@dataclass(frozen=True)
class Killed:
    """The run's directory, what its drivers printed, and the weights that were spoilt."""

    run: Path
    said: list[str]
    before: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Killed:
    """Three times: in distillation, in the evaluation after it, and in reinforcement."""
    runs = tmp_path_factory.mktemp("runs")
    run = RunDirectory(runs / "killed")

    def evaluates() -> bool:
        return read_status(run, time.time()).phase == "evaluate"

    few, all_kept = (command(runs, f"checkpoint.keep={count}") for count in (2, 100))
    said = [
        kill_when(few, lambda: len(steps(run.path, "distill")) >= 5, "5 distillation steps"),
        kill_when(few, evaluates, "the evaluation"),
    ]
    weights = run.checkpoint_path(12) / "model.safetensors"
    before = load_file(weights)
    spoil(weights)
    three_steps = "3 policy steps"
    said.append(kill_when(all_kept, lambda: len(steps(run.path, "reinforce")) >= 3, three_steps))
    refused = subprocess.run(
        command(runs, "reinforce.group_size=8"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert refused.returncode == 2
    assert "reinforce.group_size: 4 -> 8" in refused.stderr
    last = [*all_kept, "rollout.workers=2", "--resume", "killed"]
    return Killed(run.path, [*said, drive(last)], before)


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_each_step_is_there_once_and_the_run_is_done(killed):
    run, said = killed.run, killed.said
    assert [row["step"] for row in steps(run, "distill")] == list(range(1, 13))
    assert [row["step"] for row in steps(run, "reinforce")] == list(range(1, 6))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "done"
    assert [e["phase"] for e in summary["evaluations"]] == ["distill", "reinforce"]
    assert "taking the run up" not in said[0]
    assert "taking the run up in phase 1, after step" in said[1]
    assert "taking the run up in phase 2" in said[2]
    assert "taking the run up in phase 3, after step" in said[3]
    assert any("replaying" in text for text in said[1:])


def test_the_teacher_is_asked_once_and_held_out_traces_are_measured(killed):
    """Though the weights that it had are gone when the run is taken up."""
    run, said = killed.run, killed.said
    asked = "asking the teacher (policy) for its 4 likeliest tokens at each place of 810 traces"
    assert [asked in text for text in said] == [True, False, False, False]
    distilled = steps(run, "distill")
    assert abs(distilled[0]["teacher_kl"]) < 1e-4 < distilled[-1]["teacher_kl"]
    measured = [row["step"] for row in distilled if "validation/loss" in row]
    assert measured == [4, 8, 12]


def test_the_checkpoint_that_distillation_left_is_computed_again_bit_for_bit(killed):
    said = killed.said[2]
    assert (
        "checkpoints/step-000012 is not used: model.safetensors does not have its SHA-256; it is "
        "now checkpoints/damaged-step-000012" in said
    )
    assert "writing checkpoints/step-000012 again, from checkpoints/step-000010" in said
    run = RunDirectory(killed.run)
    after = load_file(run.checkpoint_path(12) / "model.safetensors")
    assert killed.before.keys() == after.keys()
    assert all((killed.before[name] == after[name]).all() for name in after)
    kinds = [event["event"] for event in run.read_events()]
    assert kinds.count("checkpoint_damaged") == 1
    assert kinds.count("step_committed") == 12 + 5


def test_no_pair_is_trained_on_twice_in_an_epoch_and_versions_go_on(killed):
    run = killed.run
    with open_store(None, run) as store:
        journal = RunJournal(store.client, "killed")
        distilled, reinforced = journal.commits(0), journal.commits(2)
    uids = Counter(uid for commit in reinforced for uid in commit.consumed)
    assert sum(uids.values()) == len(uids) == 5 * 8
    assert len({uid for commit in distilled for uid in commit.consumed}) == 12 * 64
    assert [commit.weight_version for commit in reinforced] == [2, 3, 4, 5, 6]
    kept = [
        c.step for c in reinforced if (run / "batches" / f"{c.batch_hash}.safetensors").exists()
    ]
    assert kept == [3, 4, 5]  # those after the oldest checkpoint of the phase


def test_replaying_committed_batches_gives_the_weights_that_the_run_had(killed):
    """Bit for bit, from the checkpoint after policy step 2 to the one after step 4."""
    run = killed.run
    with open_store(None, run) as store:
        journal = RunJournal(store.client, "killed")
        commits = journal.commits(2)
        by_step = {c.phase_step: c for c in journal.checkpoints() if c.phase == 2}
        reference = max(c.path for c in journal.checkpoints() if c.phase == 0)
    hashes = [str(commit.batch_hash) for commit in commits if commit.step in (3, 4)]
    arguments = [run, by_step[2].path, reference, *hashes, by_step[4].path]
    environment = os.environ | learner_environment(LearnerSettings())
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "replay.py", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tensors"] > 0
    assert found["equal"] == found["tensors"]
