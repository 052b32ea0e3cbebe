"""Real Redis servers for the tests, and what to ask of them."""

import socket
import subprocess
import time
from contextlib import contextmanager

import psutil

from orchestrator.store_server import redis_binary


def server_pid(client) -> int:
    return client.info("server")["process_id"]


def wait_until_gone(pid: int, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} goes on"
        time.sleep(0.02)


@contextmanager
def redis_server(*arguments: str, socket_path: str | None = None, port: int = 0):
    """A server that is not the driver's own."""
    server = subprocess.Popen(
        [redis_binary(), "--port", str(port), "--save", "", *arguments],
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 10
    try:
        while not is_listening(socket_path or ("127.0.0.1", port)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield server
    finally:
        server.terminate()
        server.wait(10)


def is_listening(address: str | tuple[str, int]) -> bool:
    """At the path of a unix socket, or at a host and port."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
