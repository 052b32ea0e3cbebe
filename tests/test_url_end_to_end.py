"""A run at a URL: its driver is killed, and another node goes on from what is there alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from actors.sealed_folder import FolderOnDisk, find_damage
from orchestrator.journal import RunJournal
from orchestrator.store_client import connect
from orchestrator.store_server import redis_binary

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(600)]
DISTILLED, REINFORCED = 6, 4
SETTINGS = [
    "phases=[distill, reinforce, evaluate]",
    "data.generate.heldout_pairs=4",
    "data.generate.reinforce_pairs=600",
    f"distill.max_steps={DISTILLED}",
    f"reinforce.max_steps={REINFORCED}",
    "reinforce.prompts_per_step=4",
    "reinforce.mini_batch_prompts=2",
    # Scores that differ, also of a judge that has learned nothing yet.
    "reward.mix.overlong={uses: 'builtin:overlong', options: {margin: 1.0}}",
    "rollout.workers=1",
    "learner.ranks=1",
    "checkpoint.every_steps=2",
    "output.samples=0",
    "output.progress=lines",
    "rollout.worker=benchmarks.stand_in:StandInWorker",  # starts sooner than vLLM, and is exact
]


@pytest.fixture
def store_url(free_port, tmp_path) -> Iterator[str]:
    arguments = ["--port", str(free_port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    server = subprocess.Popen([redis_binary(), *arguments], stdout=subprocess.DEVNULL)
    yield f"redis://127.0.0.1:{free_port}/0"
    server.terminate()
    server.wait(10)


def command(runs: str, *more: str) -> list[str]:
    own = ["run.id=moved", f"run.dir={runs}", *SETTINGS, *more]
    return [sys.executable, "-m", "orchestrator", "run", "configs/quickstart.yaml", *own]


def gavel(arguments: list[str], cache: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        arguments,
        cwd=ROOT,
        env=os.environ | {"GAVEL_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def measured(metrics: Path | None, phase: str, name: str = "step") -> list:
    """A metric of each step of a phase."""
    lines = metrics.read_text().splitlines(keepends=True) if metrics else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row[name] for row in rows if row["phase"] == phase and "phase_index" in row]


def kill_after(arguments: list[str], cache: Path, log: Path, step: int) -> None:
    """Ends the driver by SIGKILL when it has measured a step of reinforcement."""
    environment = os.environ | {"GAVEL_CACHE": str(cache)}
    with log.open("w") as file:
        driver = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=file, stderr=file)
    deadline_s = time.monotonic() + 300
    while step not in measured(next(cache.glob("runs/*/moved/metrics.jsonl"), None), "reinforce"):
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s, f"step {step}: not within 300 s: {log.read_text()}"
        time.sleep(0.05)
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait(30)
    actors = [process for process in family if "ray::" not in _name(process)]
    psutil.wait_procs(actors, timeout=30)


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def test_another_node_goes_on_from_what_is_at_the_url(tmp_path, store_url):
    cache, there = tmp_path / "cache", tmp_path / "there"
    runs, at_url = f"file://{there}", (f"store.url={store_url}", "store.prefix=moved")
    kill_after(command(runs, *at_url), cache, tmp_path / "log", step=3)
    shutil.rmtree(cache)
    again = gavel([*command(runs, *at_url), "--resume"], cache)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "taking the run up in phase 2, after step" in again.stdout
    assert f"see {runs}/moved" in again.stdout

    run = there / "moved"
    assert measured(run / "metrics.jsonl", "distill") == list(range(1, DISTILLED + 1))
    assert measured(run / "metrics.jsonl", "reinforce") == list(range(1, REINFORCED + 1))
    assert max(measured(run / "metrics.jsonl", "reinforce", "grad_norm")) > 0.01
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "done"
    for name in ("config.yaml", "events.jsonl", "report.html", "model/gavel.json"):
        assert (run / name).exists(), name
    assert list((run / "tensorboard").iterdir())
    client = connect(store_url, 10.0, "moved")
    journal = RunJournal(client, "moved")
    used = Counter(uid for commit in journal.commits(1) for uid in commit.consumed)
    assert sum(used.values()) == len(used) == REINFORCED * 4
    known = [checkpoint.path for checkpoint in journal.checkpoints()]
    client.close()
    assert sorted(known) == sorted(str(p.relative_to(run)) for p in run.glob("checkpoints/*"))
    assert [find_damage(FolderOnDisk(run / path)) for path in known] == [None] * len(known)
    assert not list(cache.rglob("checkpoints/step-*"))  # what was written there is at the URL alone

    undisturbed = gavel(command(str(tmp_path / "plain")), tmp_path / "unused")
    assert undisturbed.returncode == 0, undisturbed.stdout + undisturbed.stderr
    weights = f"checkpoints/step-{DISTILLED + REINFORCED:06d}/model.safetensors"
    assert (run / weights).read_bytes() == (tmp_path / "plain" / "moved" / weights).read_bytes()
    assert not (tmp_path / "unused").exists()
