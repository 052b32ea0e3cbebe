"""A server's life: its socket, its signals and its end, with any engine."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import uvicorn

from judging.errors import ConfigurationError, InfrastructureError
from serving.gate import Gate
from serving.guard import App

INTERRUPTED = 130
_CLOSE_S = 5  # for answers that are on their way
_BACKLOG = 1024


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are those of `run_server`: uvicorn's own would refuse connections at once."""
        yield


def bind(host: str, port: int) -> socket.socket:
    """Takes the port, before anything that costs; port 0 is a free one.

    Raises:
        ConfigurationError: it cannot be had.
    """
    if not 0 <= port <= 65535:
        raise ConfigurationError(f"cannot serve at {host}:{port}: a port is 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        raise ConfigurationError(f"cannot serve at {host}:{port}: {error}: give another") from None
    return taken


async def run_server(
    app: App,
    gate: Gate,
    listener: socket.socket,
    *,
    grace_s: float,
    engine_died: Callable[[], Awaitable[None]] | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> int:
    """Serves until a signal comes; returns the exit status.

    SIGTERM: nothing more is taken, what was taken is answered within `grace_s`, status 0; a second
    one gives up what is left. Ctrl-C gives it up at once, status 130.

    Raises:
        InfrastructureError: the engine died.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_CLOSE_S,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    watching = asyncio.ensure_future(engine_died()) if engine_died else asyncio.Future[None]()
    signals: asyncio.Queue[int] = asyncio.Queue()
    with _captured(signals):
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if server.started:
            on_ready()
        first = asyncio.create_task(signals.get())
        await asyncio.wait((first, watching, serving), return_when=asyncio.FIRST_COMPLETED)
        was_asked = first.done()
        try:
            if was_asked and first.result() == signal.SIGTERM:
                await _close(gate, grace_s, signals)
            else:
                await gate.close(0)
        finally:
            first.cancel()
            watching.cancel()
            server.should_exit = True
            await serving
    if not was_asked:
        raise InfrastructureError(
            "the engine has died or hangs: see its last lines above; start again"
        )
    return 0 if first.result() == signal.SIGTERM else INTERRUPTED


async def _close(gate: Gate, grace_s: float, signals: asyncio.Queue[int]) -> None:
    closing = asyncio.create_task(gate.close(grace_s))
    second = asyncio.create_task(signals.get())
    await asyncio.wait((closing, second), return_when=asyncio.FIRST_COMPLETED)
    gate.abandoned.set()
    second.cancel()
    await closing


@contextmanager
def _captured(signals: asyncio.Queue[int]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
