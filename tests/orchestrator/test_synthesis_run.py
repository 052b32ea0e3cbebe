"""A phase of synthesis as a run of its own, from the command line to the data set."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from judging.quickstart import QuickstartTask, generate
from judging.readers import read_pairs, write_pairs
from synthesis.ledger import Ledger

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
KEY = "sk-secret-of-the-teacher-0123456789"
PRICE = {"input_usd_per_million": 3.0, "output_usd_per_million": 15.0}
PAIRS = 40


@pytest.fixture
def stub():
    started = []

    def start(*arguments):
        command = [sys.executable, str(ROOT / "benchmarks" / "teacher_stub.py"), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        return process.stdout.readline().split()[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def stats(base_url):
    with closing(urllib.request.urlopen(base_url.removesuffix("/v1") + "/stats")) as answer:
        return json.load(answer)


@pytest.fixture
def configured(tmp_path):
    """`configured(url, **of_synthesize)`: the path of a configuration."""
    write_pairs(tmp_path / "pairs.jsonl", generate(QuickstartTask()).reinforce[:PAIRS])

    def write(url, teacher=None, **changes):
        teachers = {
            name: {
                "uses": "openai",
                "model": "stub-teacher",
                "base_url": url,
                "api_key_env": "THE_KEY",
                "max_new_tokens": 128,
                **deepcopy(teacher or {}),
            }
            for name in ("first", "second")
        }
        tree = {
            "run": {"id": "made", "dir": str(tmp_path / "runs")},
            "phases": ["synthesize"],
            "judge": {"template": "compact"},
            "data": {
                "path": str(tmp_path / "pairs.jsonl"),
                "distill_fraction": 1.0,
                "heldout_fraction": 0.0,
                "overlap": "ignore",
            },
            "output": {"tensorboard": False},
            "synthesize": {
                "teachers": teachers,
                "passes": [{"teacher": "first"}, {"teacher": "second", "tells_verdict": True}],
                "checks": {"weights": False},
                "prices": {"stub-teacher": PRICE},
                **changes,
            },
        }
        path = tmp_path / "made.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


def command(path, *arguments):
    return [sys.executable, "-m", "orchestrator", "run", str(path), *arguments]


def environment(**changes):
    return {**os.environ, "PYTHONPATH": str(ROOT), "THE_KEY": KEY, **changes}


def drive(path, *arguments, **changes):
    return subprocess.run(
        command(path, *arguments),
        env=environment(**changes),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
    )


def summary(tmp_path):
    return json.loads((tmp_path / "runs/made/synthesis/0/summary.json").read_text())


def test_it_makes_a_data_set_and_the_key_is_nowhere(stub, configured, tmp_path):
    url = stub("--key", KEY, "--trouble", "0.1", "--wrong", "0.4", "--latency-ms", "5")
    done = drive(configured(url, max_cost_usd=5.0))
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/made"
    pairs = list(read_pairs(run / "synthesis/0/dataset/traces.jsonl", every_trace=True))
    found = summary(tmp_path)
    assert found["kept"] == found["traces"] == len(pairs) > PAIRS * 0.8
    assert {row["pass"] for row in found["passes"]} == {1, 2}
    served = stats(url)
    assert served["answered_twice"] == 0
    assert sum(each["answers"] for each in found["teachers"]) == served["answered"]
    assert found["cost_usd"] == pytest.approx(
        (served["input_tokens"] * 3 + served["output_tokens"] * 15) / 1e6, abs=1e-9
    )
    assert "THE_KEY" in (run / "config.yaml").read_text()
    for file in run.rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file
    assert KEY not in done.stdout + done.stderr
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["synthesis/kept"] == found["kept"] / PAIRS
    again = drive(configured(url, max_cost_usd=5.0))  # nothing is left to do, nor to ask
    assert again.returncode in (0, 2)
    assert stats(url)["requests"] == served["requests"]


def test_a_driver_that_is_killed_goes_on_and_nothing_is_paid_for_twice(stub, configured, tmp_path):
    url = stub("--latency-ms", "300")
    path = configured(url, teacher={"max_in_flight": 4})
    with subprocess.Popen(command(path), env=environment(), cwd=ROOT) as process:
        until_s = time.monotonic() + 90
        while stats(url)["requests"] < 10:
            assert time.monotonic() < until_s
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    done = drive(path)
    assert done.returncode == 0, done.stderr
    found, served = summary(tmp_path), stats(url)
    assert found["pairs"] == PAIRS
    assert served["answered_twice"] == 0
    assert served["requests"] == served["answered"]
    assert sum(each["answers"] for each in found["teachers"]) == served["answered"]
    assert sum(each["in_doubt"] for each in found["teachers"]) == 0


def test_a_run_after_it_takes_all_from_the_cache(stub, configured, tmp_path):
    url = stub("--latency-ms", "1")
    path = configured(url, cache=str(tmp_path / "answers"))
    for name in ("made", "made-again"):
        assert drive(path, f"run.id={name}").returncode == 0
    first, again = (
        json.loads((tmp_path / f"runs/{name}/synthesis/0/summary.json").read_text())
        for name in ("made", "made-again")
    )
    assert stats(url)["requests"] == sum(each["tries"] for each in first["teachers"])
    assert again["cost_usd"] == sum(each["tries"] for each in again["teachers"]) == 0
    assert again["kept"] == first["kept"]
    traces = [
        (tmp_path / f"runs/{name}/synthesis/0/dataset/traces.jsonl").read_bytes()
        for name in ("made", "made-again")
    ]
    assert traces[0] == traces[1]


def test_nonsense_stops_it_before_more_is_sent(stub, configured):
    url = stub("--nonsense", "--latency-ms", "1")
    done = drive(configured(url, nonsense_window=8))
    assert done.returncode == 2
    assert "of its first" in done.stderr
    assert "hold no verdict" in done.stderr
    assert "Traceback" not in done.stderr
    assert stats(url)["requests"] <= 8


def test_after_nonsense_it_goes_on_with_what_was_corrected(stub, configured, tmp_path):
    changes = {"nonsense_window": 8, "passes": [{"teacher": "first"}]}
    assert drive(configured(stub("--nonsense"), **changes)).returncode == 2
    url = stub("--latency-ms", "1")
    again = configured(url, teacher={"max_new_tokens": 127}, **changes)
    done = drive(again, "--resume")
    assert done.returncode == 0, done.stderr
    assert "other settings than before" in done.stdout
    assert summary(tmp_path)["pairs"] == stats(url)["answered"] == PAIRS
    assert summary(tmp_path)["kept"] > PAIRS / 2


def other_templates(configured, tmp_path, url):
    with Ledger(tmp_path / "answers" / "answers.sqlite", is_shared=True) as cache:
        cache.check_templates({"compact": "another version"})
    return configured(url, cache=str(tmp_path / "answers")), (), {}


@pytest.mark.parametrize(
    ("prepare", "parts"),
    [
        (lambda make, tmp, url: (make(url), (), {"THE_KEY": ""}), ["THE_KEY", "is not set"]),
        (lambda make, tmp, url: (make(url), (), {"THE_KEY": f"{KEY}\n"}), ["export the key alone"]),
        (lambda make, tmp, url: (make(url), (), {"THE_KEY": "wrong"}), ["answers 401", "THE_KEY"]),
        (
            lambda make, tmp, url: (make(url, teacher={"api_key_env": KEY}), (), {}),
            ["api_key_env is the name of an environment variable"],
        ),
        (
            lambda make, tmp, url: (make(url), (f"synthesize.teachers.first.api_key={KEY}",), {}),
            ["unknown key synthesize.teachers.first.api_key", "environment variable"],
        ),
        (
            lambda make, tmp, url: (make(url, teacher={"parameters": {"k": KEY}}), (), {}),
            ["first.parameters holds what looks like a key"],
        ),
        (
            lambda make, tmp, url: (make(url, prices={"other": PRICE}), (), {}),
            ["synthesize.prices has no stub-teacher", "add its price"],
        ),
        (
            lambda make, tmp, url: (
                make(url, teacher={"model": "stub"}, prices={"stub": PRICE}),
                (),
                {},
            ),
            ["first.model", "does not know stub", "stub-teacher"],
        ),
        (
            lambda make, tmp, url: (make(url, passes=[{"teacher": "third"}]), (), {}),
            ["passes[0].teacher is third"],
        ),
        (other_templates, ["synthesize.cache", "another version", "name another folder"]),
    ],
    ids=[
        *("no key", "key with a line end", "wrong key", "key for a variable", "key", "parameters"),
        *("no price", "unknown model", "unknown teacher", "other template"),
    ],
)
def test_what_is_wrong_is_refused_before_the_first_request(
    stub, configured, tmp_path, prepare, parts
):
    url = stub("--key", KEY)
    path, overrides, changes = prepare(configured, tmp_path, url)
    done = drive(path, *overrides, **changes)
    assert done.returncode == 2, done.stderr
    for part in parts:
        assert part in done.stderr
    assert KEY not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert stats(url)["requests"] == 0
