"""`gavel eval` on real engines: killed, begun again, and each judgment made once."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from benchmark_samples import write_all

from evaluation.judgments import read_judgments

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(400)]
SETTINGS = (
    "model.dtype=fp32",
    "judge.template=compact",
    "rollout.max_new_tokens=48",
    "rollout.max_concurrent_sequences=8",
    "rollout.kv_cache_gib=0.1",
    "output.progress=lines",
)


def gavel(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", "eval", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        gavel(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )


def kill_when(reached, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for each in psutil.wait_procs(family, timeout=3)[1]:
        each.kill()


def test_a_killed_evaluation_goes_on_and_judges_nothing_twice(make_model, tmp_path):
    data, output, log = write_all(tmp_path / "data"), tmp_path / "output", tmp_path / "log"
    judgments = output / "judgments.jsonl"
    command = (str(make_model()), "--bench", "rmb,rm-bench,judgebench", "--data", str(data))
    command = (*command, "--output", str(output), "--limit", "6")

    def lines() -> int:
        return judgments.read_bytes().count(b"\n") if judgments.exists() else 0

    with log.open("w") as out:
        first = subprocess.Popen(gavel(*command, *SETTINGS), cwd=ROOT, stdout=out, stderr=out)
    kill_when(lambda: lines() >= 10, first, log)
    before = lines()
    assert not (output / "results.json").exists()

    again = run(*command, *SETTINGS)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{before:,} are there" in again.stdout
    assert "RM-Bench" in again.stdout
    made = [judgment.key for judgment in read_judgments(judgments)]
    results = json.loads((output / "results.json").read_text())
    assert len(made) == len(set(made)) == before + results["judged_now"]
    pairs = {uid for uid, _ in made}
    assert len(made) == len(pairs)  # of a pair in two benchmarks too
    assert results["too_long"] == 0
    assert [each["result"]["benchmark"] for each in results["benchmarks"]] == [
        "rmb",
        "rm-bench",
        "judgebench",
    ]
    page = (output / "report.html").read_text()
    assert "<svg" in page

    began_s = time.monotonic()
    third = run(*command, *SETTINGS, "--json")
    assert json.loads(third.stdout)["judged_now"] == 0
    assert time.monotonic() - began_s < 20  # no engine was started
    assert third.stdout == (output / "results.json").read_text()

    compared = run("compare", str(output), str(output), "--json")
    assert {each["p"] for each in json.loads(compared.stdout)["differences"]} == {1.0}

    other = run(*command, *SETTINGS, "rollout.max_new_tokens=20")
    assert other.returncode == 2
    assert "max_new_tokens: 48 there, 20 now" in other.stderr
