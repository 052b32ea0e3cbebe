"""The run's metrics at the Prometheus endpoint of a real node of Ray, and what telling costs."""

import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.metrics import METRICS

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(300)]
DRIVER = """
import select, sys, time
from pathlib import Path
from orchestrator.cluster import ray_cluster
from orchestrator.metrics import METRICS
from orchestrator.prometheus import RayMetrics
from orchestrator.rundir import RunDirectory
from orchestrator.telemetry import Telemetry

def told(text):
    print(text, flush=True)
    while not select.select([sys.stdin], [], [], 0.3)[0]:
        telemetry.show_now({})
    sys.stdin.readline()

directory = RunDirectory.open(Path(sys.argv[1]), "first")
with ray_cluster(1), Telemetry(directory, progress="quiet") as telemetry:
    telemetry.to_ray = RayMetrics("first")
    with telemetry.phase("distill", 0, 1):
        telemetry.step(1, {"loss": 1.5, "tokens": 100.0})
        told("distill")
    with telemetry.phase("reinforce", 1, 61):
        for step in (1, 2):
            telemetry.step(step, {
                "reward/mean": 0.25, "loss": 0.5, "tokens": 100.0, "engine_restarts": step,
                "reward/failed": 0, "reward/brevity/score": 0.5, "reward/brevity/words": 9.0,
            })
        told("reinforce")
        everything = {name: 0.5 for name in METRICS}
        began_s = time.perf_counter()
        for _ in range(1000):
            telemetry.to_ray.record("reinforce", everything)
        told(f"{time.perf_counter() - began_s}")
    told("between")
telemetry.to_ray.record("reinforce", everything)  # Ray is no more
told("ended")
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """The environment of who may use a cluster without a dashboard, and its exporter's port."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    log = tmp_path_factory.mktemp("head") / "log"
    folder = tempfile.mkdtemp(prefix="ray-")
    port, exporter = free_port(6479), free_port(9180)
    with log.open("w") as file:
        head = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *("--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=1"),
                *("--include-dashboard=false", f"--metrics-export-port={exporter}"),
                *(f"--object-store-memory={128 * 2**20}", f"--temp-dir={folder}"),
                '--system-config={"metrics_report_interval_ms": 1000}',
            ],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 120
    while not samples(exporter):
        assert head.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)
    yield environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"}, exporter, head.pid
    family = psutil.Process(head.pid).children(recursive=True)
    head.terminate()
    _, alive = psutil.wait_procs([psutil.Process(head.pid), *family], timeout=30)
    for process in alive:
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def free_port(low: int) -> int:
    for port in random.sample(range(low, low + 100), 100):  # other clusters may start now
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no free port")


def scraped(exporter: int) -> dict:
    """(name, phase, other labels of ours) -> value, and the families by name."""
    try:
        with urlopen(f"http://127.0.0.1:{exporter}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except (URLError, ConnectionError):
        return {}
    return {family.name: family for family in text_string_to_metric_families(text)}


def samples(exporter: int) -> dict:
    return {
        (sample.name, sample.labels.get("phase", ""), sample.labels.get("reward", "")): sample
        for family in scraped(exporter).values()
        for sample in family.samples
    }


def eventually(exporter: int, name: str, phase: str) -> dict:
    """What is scraped once `name` is there."""
    seen, deadline = {}, time.monotonic() + 60
    while (name, phase, "") not in seen:
        assert time.monotonic() < deadline, sorted(seen)
        time.sleep(1.2)
        seen = samples(exporter)
    return seen


def test_a_run_is_seen_while_it_goes_on(node, tmp_path):
    environment, exporter, head = node
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdin is not None
    assert driver.stdout is not None

    def go_on() -> None:
        driver.stdin.write("\n")
        driver.stdin.flush()

    assert driver.stdout.readline() == "distill\n"
    seen = eventually(exporter, "ray_gavel_loss_nats", "distill")
    assert seen["ray_gavel_loss_nats", "distill", ""].value == 1.5
    assert seen["ray_gavel_run_step", "distill", ""].labels["run"] == "first"
    assert seen["ray_gavel_run_total_steps", "distill", ""].value == 1
    commit = seen["ray_gavel_run_last_commit_timestamp_seconds", "distill", ""].value
    assert abs(commit - time.time()) < 60

    go_on()
    assert driver.stdout.readline() == "reinforce\n"
    seen = eventually(exporter, "ray_gavel_reward_mean_score", "reinforce")
    assert seen["ray_gavel_reward_mean_score", "reinforce", ""].value == 0.25
    assert seen["ray_gavel_run_phase", "reinforce", ""].value == 2
    assert seen["ray_gavel_tokens_total", "reinforce", ""].value == 200
    assert seen["ray_gavel_tokens_total", "distill", ""].value == 100
    assert seen["ray_gavel_engine_restarts_total", "reinforce", ""].value == 2
    assert seen["ray_gavel_time_step_seconds_count", "reinforce", ""].value == 2
    assert seen["ray_gavel_each_reward_score", "reinforce", "brevity"].value == 0.5
    words = seen["ray_gavel_each_reward_component", "reinforce", "brevity"]
    assert (words.value, words.labels["component"]) == (9.0, "words")
    time.sleep(1.2)
    families = scraped(exporter)
    phases = {sample.labels["phase"] for sample in families["ray_gavel_loss_nats"].samples}
    assert phases == {"reinforce"}  # the other has ended
    family = families["ray_gavel_reward_mean_score"]
    assert family.type == "gauge"
    assert METRICS["reward/mean"].meaning in family.documentation

    (agent,) = (
        process
        for process in psutil.Process(head).children(recursive=True)
        if any(
            each.status == psutil.CONN_LISTEN and each.laddr.port == exporter
            for each in process.net_connections("tcp")
        )
    )
    agent.suspend()  # so that nobody takes what is told
    try:
        go_on()
        assert float(driver.stdout.readline()) < 5.0  # 1,000 steps
    finally:
        agent.resume()
    go_on()
    assert driver.stdout.readline() == "between\n"
    time.sleep(3)
    samples(exporter)  # what was told before
    time.sleep(1.2)
    left = {key for key, _, _ in samples(exporter) if key.startswith("ray_gavel_")}
    assert left
    assert all(re.search("_(total|count|sum|bucket)$|_eval_", name) for name in left)
    go_on()
    assert driver.stdout.readline() == "ended\n"
    go_on()
    assert driver.wait(60) == 0
