"""Two nodes on one machine, of which the second does not see one folder: what the doctor says of
them, and what a run refuses before it starts an actor. And what is said of a cluster that cannot be
joined."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent
CONFIG = "configs/quickstart.yaml"
pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(600)]
HEAD, SECOND = "127.0.0.2", "127.0.0.3"  # Ray puts another address in place of 127.0.0.1


@dataclass(frozen=True)
class Nodes:
    environment: dict[str, str]  # of who may use the cluster
    apart: Path | None  # a folder that the second node has of its own
    second: psutil.Process  # that started the second node


def free_port(low: int, high: int) -> int:
    """One by chance, since other clusters may start now; Ray takes those from 10002 on for its
    workers."""
    for port in random.sample(range(low, high), high - low):
        with socket.socket() as tried:
            if tried.connect_ex((HEAD, port)) != 0:
                return port
    raise RuntimeError("no free port")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[Nodes]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # Else Ray takes no second node.
    environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    folder, gcs = tmp_path_factory.mktemp("nodes"), f"{HEAD}:{free_port(6379, 6479)}"
    apart = folder / "apart"
    apart.mkdir()
    hide = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {apart} && exec "$@"', "sh"]
    can_hide = shutil.which("unshare") and subprocess.run([*hide, "true"], check=False)
    if not can_hide or can_hide.returncode:
        hide = []
    head = ("--head", f"--port={gcs.rpartition(':')[2]}", "--include-dashboard=false")
    with started(folder / "head", environment, [], HEAD, *head):
        second = started(folder / "second", environment, hide, SECOND, f"--address={gcs}")
        with second as process:
            environment["RAY_ADDRESS"] = gcs
            wait_for_nodes(environment, 2)
            yield Nodes(environment, apart if hide else None, process)


@contextmanager
def started(
    log: Path, environment: dict[str, str], before: list[str], address: str, *arguments: str
) -> Iterator[psutil.Process]:
    """A node that is up; ended by its process ids."""
    temporary = tempfile.mkdtemp(prefix="ray-")  # short, for its sockets
    with log.open("w") as file:
        process = subprocess.Popen(
            [
                *(*before, sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
                *(f"--node-ip-address={address}", "--num-cpus=4", f"--temp-dir={temporary}"),
                *(f"--object-store-memory={128 * 2**20}", *arguments),
            ],
            env=environment,
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        if process.poll() is None:
            whole = psutil.Process(process.pid)
            family = [whole, *whole.children(recursive=True)]
            process.terminate()
            for each in psutil.wait_procs(family, timeout=30)[1]:
                each.kill()
        shutil.rmtree(temporary, ignore_errors=True)


def python(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def gavel(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    return python(environment, "-m", "orchestrator", *arguments)


def gcs(environment: dict[str, str], program: str) -> str:
    """What a program prints that has the GCS as `gcs`."""
    begin = f"import json, ray._raylet\ngcs = ray._raylet.GcsClient({environment['RAY_ADDRESS']!r})"
    done = python(environment, "-c", f"{begin}\n{program}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_for_nodes(environment: dict[str, str], count: int) -> None:
    deadline = time.monotonic() + 60
    while gcs(environment, "print(len(gcs.get_all_node_info()))") != str(count):
        assert time.monotonic() < deadline


def has_ended_its_actors(environment: dict[str, str]) -> bool:
    """Whether every actor that the cluster has had is gone within 30 s."""
    program = (
        "import logging, time, ray\n"
        "from ray._private.state import actors\n"
        "ray.init(log_to_driver=False, logging_level=logging.ERROR)\n"
        "deadline = time.monotonic() + 30\n"
        "while any(a['State'] != 'DEAD' for a in actors().values()):\n"
        "    assert time.monotonic() < deadline, actors()\n"
    )
    return python(environment, "-c", program).returncode == 0


def doctor(
    environment: dict[str, str], *arguments: str
) -> tuple[list[dict], subprocess.CompletedProcess]:
    done = gavel(environment, "doctor", *arguments, "--json")
    assert done.returncode in (0, 1), done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout), done


def of(rows: list[dict], check: str) -> list[tuple[str, str]]:
    return [(row["where"], row["status"]) for row in rows if row["check"] == check]


def test_two_nodes_that_are_well_have_no_failure_and_keep_nothing(nodes, tmp_path):
    rows, done = doctor(nodes.environment, CONFIG, f"run.dir={tmp_path}")
    assert done.returncode == 0, done.stdout
    both = f"{HEAD}, {SECOND}"
    assert of(rows, "versions") == [("driver", "pass"), (both, "pass")]
    for check in ("ports", "clock", "authentication", "tools", "GPUs"):
        assert of(rows, check) == [(both, "pass")], check
    assert of(rows, "run.dir") == [("", "pass")]
    assert list(tmp_path.iterdir()) == []
    assert has_ended_its_actors(nodes.environment)


def test_a_directory_that_one_node_does_not_share_is_refused(nodes):
    if nodes.apart is None:
        pytest.skip("this machine does not let a process have mounts of its own (unshare --mount)")
    settings = [CONFIG, f"run.dir={nodes.apart}", "run.id=apart"]
    rows, done = doctor(nodes.environment, *settings)
    assert done.returncode == 1
    assert of(rows, "run.dir") == [(SECOND, "fail")]
    refused = gavel(nodes.environment, "run", *settings)
    assert refused.returncode == 2, refused.stderr
    assert "is not one directory on all nodes of the cluster" in refused.stderr
    assert f"- {SECOND} " in refused.stderr
    assert HEAD not in refused.stderr
    assert "starting learners" not in refused.stdout
    assert not list((nodes.apart / "apart").glob(".shared-*"))
    assert has_ended_its_actors(nodes.environment)


def test_a_relative_directory_is_refused_where_there_are_several_nodes(nodes):
    rows, done = doctor(nodes.environment, CONFIG, "run.dir=runs")
    (shared,) = (row for row in rows if row["check"] == "run.dir")
    assert (done.returncode, shared["status"]) == (1, "fail")
    assert "is relative" in shared["found"]
    assert "absolute path" in shared["mend"]


def test_a_node_that_is_silent_is_a_row_within_the_deadline(nodes, tmp_path):
    stopped = [each for each in nodes.second.children(recursive=True) if each.name() == "raylet"]
    assert stopped
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        rows, done = doctor(nodes.environment, CONFIG, f"run.dir={tmp_path}", "--timeout-s", "25")
        took_s = time.monotonic() - began
    finally:
        for process in stopped:
            process.send_signal(signal.SIGCONT)
    assert done.returncode == 1
    assert of(rows, "node") == [(SECOND, "fail")]
    assert ("driver", "pass") in of(rows, "versions")
    assert took_s < 90
    assert list(tmp_path.iterdir()) == []


def refused_run(environment: dict[str, str], folder: Path) -> str:
    """The one line that a run says which cannot join its cluster."""
    began = time.monotonic()
    done = gavel(environment, "run", CONFIG, f"run.dir={folder}", "output.progress=quiet")
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if " - -  gavel: " in line]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert time.monotonic() - began < 60
    return lines[0]


def no_token(environment: dict[str, str], home: Path) -> dict[str, str]:
    """Of somebody who has none, not at home either."""
    environment = {k: v for k, v in environment.items() if k != "RAY_AUTH_TOKEN"}
    return environment | {"HOME": str(home)}


@pytest.mark.parametrize("token", ["wrong", "none", "off"])
def test_a_token_that_is_refused_is_one_line(nodes, tmp_path, token):
    environment = {
        "wrong": nodes.environment | {"RAY_AUTH_TOKEN": "0" * 64},
        "none": no_token(nodes.environment, tmp_path),
        "off": no_token(nodes.environment, tmp_path) | {"RAY_AUTH_MODE": "disabled"},
    }[token]
    line = refused_run(environment, tmp_path)
    assert "RAY_AUTH_TOKEN" in line
    assert nodes.environment["RAY_AUTH_TOKEN"] not in line
    rows, done = doctor(environment)
    assert (done.returncode, of(rows, "cluster")) == (1, [("", "fail")])
    assert ("driver", "pass") in of(rows, "versions")


@contextmanager
def silent_listener() -> Iterator[str]:
    with socket.create_server((HEAD, 0)) as server:
        yield f"{HEAD}:{server.getsockname()[1]}"


def test_nobody_at_the_address_is_one_line(nodes, tmp_path):
    nobody = nodes.environment | {"RAY_ADDRESS": f"{HEAD}:9"}
    assert f"no Ray cluster answers at {HEAD}:9" in refused_run(nobody, tmp_path)
    rows, done = doctor(nobody)
    assert (done.returncode, of(rows, "cluster")) == (1, [("", "fail")])


def test_somebody_else_at_the_address_is_one_line(nodes, tmp_path):
    with silent_listener() as address:
        line = refused_run(nodes.environment | {"RAY_ADDRESS": address}, tmp_path)
    assert f"no Ray cluster answers at {address}" in line


@pytest.mark.parametrize(("part", "other"), [("ray", "2.54.0"), ("python", "3.11.0")])
def test_another_version_in_the_cluster_is_one_line(nodes, tmp_path, part, other):
    """The cluster's own note of its versions, by which Ray judges, is made to tell another one."""
    read = 'gcs.internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster").decode()'
    before = gcs(nodes.environment, f"print({read})")
    write = 'gcs.internal_kv_put(b"CLUSTER_METADATA", {!r}.encode(), True, b"cluster")'
    changed = json.dumps(json.loads(before) | {f"{part}_version": other})
    gcs(nodes.environment, write.format(changed))
    try:
        line = refused_run(nodes.environment, tmp_path)
    finally:
        gcs(nodes.environment, write.format(before))
    assert other in line
    assert has_ended_its_actors(nodes.environment)
