"""A run as a job of a Ray cluster: submitted, refused twice, stopped in order, resumed; and what is
said when the cluster cannot be reached."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from ray_head import ray_head

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(900)]
STEPS = 45  # two seconds and more each while `waits_while` is there


@pytest.fixture(scope="module")
def waits_while(tmp_path_factory) -> Path:
    """While this file is there, runs go on slowly: see `waiting_reward`."""
    return tmp_path_factory.mktemp("waits") / "while"


@pytest.fixture(scope="module")
def cluster(waits_while) -> Iterator[dict[str, str]]:
    """The environment of who may use a cluster, which has a place for one driver."""
    variables = {"PYTHONPATH": str(ROOT / "tests" / "rewards"), "WAITS_WHILE": str(waits_while)}
    with ray_head(resources={"driver": 1}, variables=variables) as environment:
        yield environment


def gavel(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def submit(runs: Path) -> list[str]:
    return [
        "submit",
        "configs/quickstart.yaml",
        f"run.dir={runs}",
        "run.id=far",
        "phases=[distill, reinforce]",
        "data.generate.heldout_pairs=16",
        "data.generate.reinforce_pairs=600",
        "distill.max_steps=3",
        f"reinforce.max_steps={STEPS}",
        "reinforce.prompts_per_step=8",
        "reinforce.mini_batch_prompts=4",
        "reward.mix.slow={uses: 'import:waiting_reward:waits', mode: shadow}",
        "rollout.workers=1",
        "learner.ranks=1",
        "output.samples=0",
        "rollout.worker=benchmarks.stand_in:StandInWorker",  # starts sooner than vLLM
    ]


def steps(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if row["phase"] == "reinforce" and "phase_index" in row]


def test_a_submitted_run_is_stopped_in_order_and_submitted_again_goes_on(
    cluster, waits_while, tmp_path
):
    waits_while.touch()
    submitted = gavel(cluster, *submit(tmp_path), "--no-follow")
    assert submitted.returncode == 0, submitted.stderr
    assert "submitted the run far as job gavel-far-1" in submitted.stderr
    run, deadline = tmp_path / "far", time.monotonic() + 300
    while len(steps(run)) < 2:
        assert time.monotonic() < deadline, gavel(cluster, "logs", "far").stdout
        time.sleep(0.2)
    waits_for_the_place_of_another(cluster, tmp_path)
    doubled = gavel(cluster, *submit(tmp_path))
    assert doubled.returncode == 2
    assert "the run's job gavel-far-1 is running" in doubled.stderr
    running = gavel(cluster, "status", "far", "--address", cluster["RAY_API_SERVER_ADDRESS"])
    assert running.returncode == 0, running.stderr
    for part in ("gavel-far-1", "running (from the journal)", "127.0.0.1"):
        assert part in running.stdout

    stopped = gavel(cluster, "stop", "far")
    assert stopped.returncode == 0, stopped.stderr
    done = len(steps(run))
    assert 2 <= done < STEPS
    assert (run / "checkpoints" / f"step-{3 + done:06}").is_dir()
    said = gavel(cluster, "logs", "far").stdout
    assert "SIGTERM: the run ends after this step" in said
    assert "stopped in order, between two steps" in said

    waits_while.unlink()
    again = gavel(cluster, *submit(tmp_path))
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr
    assert f"taking the run up in phase 2, after step {done}" in again.stdout
    assert "run far done" in again.stdout
    assert [row["step"] for row in steps(run)] == list(range(1, STEPS + 1))


def waits_for_the_place_of_another(cluster: dict[str, str], runs: Path) -> None:
    """A second run says who has the place that it asks for; Ctrl-C only ends the following."""
    arguments = [*submit(runs), "run.id=second"]
    follower = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *arguments],
        cwd=ROOT,
        env=cluster,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that a shell started in its background ignore it, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert follower.stderr is not None
    for line in follower.stderr:
        if "has not begun yet" in line:
            assert "it asks for 1 driver (the cluster has 1, taken by gavel-far-1)" in line
            break
    follower.send_signal(signal.SIGINT)
    said = follower.stderr.read()
    assert follower.wait(60) == 130
    assert "the run goes on: `gavel logs second --follow`" in said
    pending = gavel(cluster, "stop", "second", "--timeout-s", "0")
    assert pending.returncode == 1
    assert "it ends as soon as it begins" in pending.stderr


def test_the_exit_status_is_the_runs_own(cluster, tmp_path):
    failed = gavel(
        cluster, *submit(tmp_path), "run.id=failed", "model.make=null", "model.path=/no/such/model"
    )
    assert failed.returncode == 2, failed.stdout + failed.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"RAY_AUTH_TOKEN": "0" * 64}, "refuses this token"),
        ({"RAY_AUTH_TOKEN": ""}, "refuses this token"),
        (
            {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"},
            "dashboard at http://127.0.0.1:9 does",
        ),
    ],
)
def test_what_is_wrong_with_the_cluster_is_one_line(cluster, tmp_path, change, expected):
    refused = gavel(cluster | change, *submit(tmp_path))
    assert refused.returncode == 1
    assert expected in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_job_that_is_not_there_is_told_with_those_that_are(cluster):
    unknown = gavel(cluster, "logs", "nobody")
    assert unknown.returncode == 2
    assert "has no job of a run nobody; it has had " in unknown.stderr
    assert "far" in unknown.stderr


def test_a_password_does_not_travel(cluster, tmp_path):
    refused = gavel(cluster, *submit(tmp_path), "store.url=redis://user:secret@127.0.0.1:1/0")
    assert refused.returncode == 2
    assert "GAVEL_STORE_PASSWORD" in refused.stderr
    assert "secret" not in refused.stderr
