"""Rewards of one's own in the main job: attached, changed while it runs, and gone wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
SHORT = [
    "phases=[distill, reinforce]",
    "distill.max_steps=4",
    "reinforce.prompts_per_step=8",
    "reinforce.mini_batch_prompts=8",
    "output.samples=0",
    "learner.ranks=1",
    "rollout.workers=1",
    "rollout.worker=benchmarks.stand_in:StandInWorker",  # starts sooner than vLLM
]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "rewards")}


def gavel(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", *arguments]


def command(runs: Path, name: str, *overrides: str) -> list[str]:
    own = [f"run.dir={runs}", f"run.id={name}", *SHORT, *overrides]
    return gavel("run", "configs/quickstart.yaml", *own)


def rewards(runs: Path, *arguments: str) -> subprocess.CompletedProcess:
    verb, *rest = arguments
    return finished(gavel("rewards", verb, "live", *rest, "--dir", str(runs)))


def finished(arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        arguments,
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@contextmanager
def running(arguments: list[str]) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(150)  # it ends its step first


def steps(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row["phase"] == "reinforce"]


def wait_for_step(run: Path, count: int, process: subprocess.Popen) -> None:
    deadline_s = time.monotonic() + 600
    while len(steps(run)) < count:
        assert process.poll() is None, process.stdout.read()[-3000:]
        assert time.monotonic() < deadline_s, f"no step {count}"
        time.sleep(0.2)


def test_rewards_change_while_the_run_goes_on_and_a_shadow_that_fails_changes_nothing(tmp_path):
    arguments = command(
        tmp_path,
        "live",
        "reinforce.max_steps=400",
        "reinforce.epochs=100",
        "reward.order=both",
        "reward.mix.consistency={uses: 'builtin:consistency', weight: 0.5}",
        "reward.mix.shadow={uses: 'import:bad_rewards:raises', mode: shadow}",
    )
    with running(arguments) as process:
        wait_for_step(tmp_path / "live", 1, process)
        attached = rewards(
            tmp_path, "attach", "mine", "import:bad_rewards:good", "--weight", "0.25"
        )
        assert attached.returncode == 0, attached.stderr
        assert "attached the reward mine (import:bad_rewards:good), from step" in attached.stdout
        weighed = rewards(tmp_path, "weight", "mine", "0.75")
        assert weighed.returncode == 0, weighed.stderr
        listed = rewards(tmp_path, "list")
        names = ("verdict", "consistency", "shadow", "mine", "0.75")
        assert all(name in listed.stdout for name in names)
        refused = rewards(tmp_path, "attach", "other", "import:bad_rewards:NoProtocol")
        assert refused.returncode == 2
        assert "import:bad_rewards:NoProtocol" in refused.stderr
        assert "without spec and score" in refused.stderr
        detached = rewards(tmp_path, "detach", "consistency")
        assert detached.returncode == 0, detached.stderr
        unknown = rewards(tmp_path, "weight", "consistency", "1")
        assert unknown.returncode == 2
        assert "it has verdict, shadow, mine" in unknown.stderr
        wait_for_step(tmp_path / "live", len(steps(tmp_path / "live")) + 2, process)
    rows = steps(tmp_path / "live")
    weights = [row.get("reward/mine/weight") for row in rows]
    assert weights[0] is None
    assert weights[-1] == 0.75
    assert 0.25 in weights
    assert rows[0]["reward/consistency/weight"] == 0.5
    assert "reward/consistency/weight" not in rows[-1]
    assert all("flip_rate" in row or row["parseable"] < 1 for row in rows)
    for row in rows:
        assert row["reward/shadow/failed"] == 1.0
        assert row["reward/failed"] == 0
        assert row["groups"] == 8
    events = [
        json.loads(line) for line in (tmp_path / "live" / "events.jsonl").read_text().splitlines()
    ]
    told = [event["event"] for event in events if event["event"].startswith("reward_")]
    assert told == [
        "reward_attach",
        "reward_weight",
        "reward_attach",
        "reward_detach",
        "reward_weight",
    ]


def test_a_reward_that_always_fails_stops_the_run_and_is_named(tmp_path):
    use = "{uses: 'import:bad_rewards:spins', call: {timeout_s: 6, call_timeout_s: 1}}"
    arguments = command(tmp_path, "spins", f"reward.mix.mine={use}", "phases=[reinforce]")
    done = finished(arguments)
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "the reward mine (import:bad_rewards:spins) failed for 100%" in done.stderr
    assert "reward.max_failure_rate" in done.stderr
    assert "Traceback" not in done.stderr
