"""A run as a job of a Ray cluster: submitted, refused twice, stopped in order, resumed; and what is
said when the cluster cannot be reached."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
STEPS = 30


def free_port(low: int, high: int) -> int:
    """Ray takes ports from 10002 on for its workers."""
    for port in range(low, high):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no free port")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The environment of who may use a cluster on loopback, with its dashboard."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    dashboard = free_port(8265, 8365)
    log = tmp_path_factory.mktemp("head") / "log"
    folder = tempfile.mkdtemp(
        prefix="ray-"
    )  # short, for its sockets; no trace of it where Ray looks
    with log.open("w") as file:
        head = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *("--node-ip-address=127.0.0.1", f"--port={free_port(6379, 6479)}"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--num-cpus=8"),
                *(f"--object-store-memory={256 * 2**20}", f"--temp-dir={folder}"),
            ],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    address = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    deadline = time.monotonic() + 120
    while gavel(environment | address, "logs", "none").returncode != 2:  # no such job
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
    yield environment | address
    family = psutil.Process(head.pid).children(recursive=True)
    head.terminate()
    _, alive = psutil.wait_procs([psutil.Process(head.pid), *family], timeout=30)
    for process in alive:
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)


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


def test_a_submitted_run_is_stopped_in_order_and_submitted_again_goes_on(cluster, tmp_path):
    submitted = gavel(cluster, *submit(tmp_path), "--no-follow")
    assert submitted.returncode == 0, submitted.stderr
    assert "submitted the run far as job gavel-far-1" in submitted.stderr
    run, deadline = tmp_path / "far", time.monotonic() + 300
    while len(steps(run)) < 2:
        assert time.monotonic() < deadline, gavel(cluster, "logs", "far").stdout
        time.sleep(0.2)
    doubled = gavel(cluster, *submit(tmp_path))
    assert doubled.returncode == 2
    assert "the run's job gavel-far-1 is running" in doubled.stderr

    stopped = gavel(cluster, "stop", "far")
    assert stopped.returncode == 0, stopped.stderr
    done = len(steps(run))
    assert 2 <= done < STEPS
    assert (run / "checkpoints" / f"step-{3 + done:06}").is_dir()
    said = gavel(cluster, "logs", "far").stdout
    assert "SIGTERM: the run ends after this step" in said
    assert "stopped in order, between two steps" in said

    again = gavel(cluster, *submit(tmp_path))
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr
    assert f"taking the run up in phase 2, after step {done}" in again.stdout
    assert "run far done" in again.stdout
    assert [row["step"] for row in steps(run)] == list(range(1, STEPS + 1))


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
