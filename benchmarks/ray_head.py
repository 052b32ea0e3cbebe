"""A Ray cluster of one node on loopback with a dashboard and a token, as long as it is needed."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import Request, urlopen

import psutil

START_S, STOP_S = 120.0, 30.0


@contextmanager
def ray_head(
    *,
    cpus: int = 8,
    resources: Mapping[str, float] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[dict[str, str]]:
    """The environment of who may use the cluster, with the address of its dashboard.

    It is the cluster's own too: this process's with `variables`.

    Raises RuntimeError, with what Ray printed, if it is not up within `START_S`.
    """
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= variables or {}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    dashboard = free_port(8265, 8365)
    address = f"http://127.0.0.1:{dashboard}"
    # Short, for its sockets; and no trace of the cluster is left where Ray looks for one.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    log = folder / "head.log"
    with log.open("w") as file:
        head = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *("--node-ip-address=127.0.0.1", f"--port={free_port(6379, 6479)}"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                # Without this port, which another cluster here may have, no job is started.
                f"--dashboard-agent-listen-port={free_port(52365, 52465)}",
                f"--ray-client-server-port={free_port(23000, 23100)}",  # that of all is 10001
                *(f"--num-cpus={cpus}", f"--resources={json.dumps(dict(resources or {}))}"),
                *(f"--object-store-memory={256 * 2**20}", f"--temp-dir={folder}"),
            ],
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_up(head, f"{address}/api/v0/nodes", environment["RAY_AUTH_TOKEN"], log)
        yield environment | {"RAY_API_SERVER_ADDRESS": address}
    finally:
        _end(head)
        shutil.rmtree(folder, ignore_errors=True)


def free_port(low: int, high: int) -> int:
    """One by chance, so that clusters that start at once do not meet. Ray takes those from 10002 on
    for its workers."""
    for port in random.sample(range(low, high), high - low):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError(f"no port from {low} to {high} is free")


def _wait_until_up(head: subprocess.Popen[bytes], url: str, token: str, log: Path) -> None:
    request = Request(url, headers={"Authorization": f"Bearer {token}"})
    deadline_s = time.monotonic() + START_S
    while True:
        with suppress(OSError), urlopen(request, timeout=5) as answer:
            if json.load(answer)["data"]["result"]["result"]:  # else it knows no node yet
                return
        if head.poll() is not None or time.monotonic() > deadline_s:
            raise RuntimeError(f"Ray did not start:\n{log.read_text()}")
        time.sleep(0.2)


def _end(head: subprocess.Popen[bytes]) -> None:
    try:
        family = [psutil.Process(head.pid)]
        family += family[0].children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    head.terminate()
    _, alive = psutil.wait_procs(family, timeout=STOP_S)
    for process in alive:
        process.kill()
    head.wait(STOP_S)
