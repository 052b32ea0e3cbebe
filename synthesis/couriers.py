"""The driver's side of the courier: a child process that holds the connections to an endpoint."""

from __future__ import annotations

import asyncio
import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from judging.errors import InfrastructureError
from synthesis.asking import TryFailed
from synthesis.courier import LOCK, UNDELIVERED

_START_S = 120.0
_STOP_S = 10.0
_LATE_S = 30.0  # beyond a try's own deadline
_LIMIT_BYTES = 2**30  # of one line: answers have no bound of their own


class Couriers:
    """One courier, started when it is needed and again when it has died. Life: `post`, `close`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = count()
        self._to_tell: list[str] = []

    async def post(self, key: str, body: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """What came of one try: `status`, `headers` and `body`, or `error`.

        Raises:
            TryFailed: the courier died or says nothing, and nobody knows.
            InfrastructureError: it does not start.
        """
        async with self._starting:
            if self._process is None:
                await self._start()
        number = next(self._numbers)
        found = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._tell({"id": number, "key": key, "body": body, "timeout_s": timeout_s})
            # The courier keeps the deadline, and may be frozen itself. In two parts: a driver that
            # was stopped finds the first one over, with what was answered meanwhile still unread.
            for part_s in (timeout_s, _LATE_S):
                await asyncio.wait((found,), timeout=part_s)
                if found.done():
                    return found.result()
            raise TryFailed(
                f"the process that carried it said nothing within {timeout_s + _LATE_S:g} s",
                is_in_doubt=True,
            )
        finally:
            self._waiting.pop(number, None)

    def written(self, key: str) -> None:
        """The answer is in the ledger: the courier need not keep it any more."""
        self._tell({"written": key})

    async def close(self) -> None:
        """It ends by itself once what is in flight is answered; that is waited for elsewhere."""
        self._write()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        if self._reading is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._reading, _STOP_S)

    def _tell(self, message: Mapping[str, Any]) -> None:
        if not self._to_tell:  # what comes in one round of the loop is written at once
            asyncio.get_running_loop().call_soon(self._write)
        self._to_tell.append(json.dumps(message) + "\n")

    def _write(self) -> None:
        text, process = "".join(self._to_tell), self._process
        self._to_tell.clear()
        if process is None or process.stdin is None or process.stdin.is_closing():
            return  # died: `_read` tells those who wait
        process.stdin.write(text.encode())

    async def _start(self) -> None:
        # In a session of its own, out of reach of the signals that end the driver's group.
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "synthesis.courier"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=_LIMIT_BYTES,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        # First of all: what is still to be told is of the one before.
        process.stdin.write(json.dumps(self._settings).encode() + b"\n")
        try:
            async with asyncio.timeout(_START_S):
                is_ready = await process.stdout.readline()
        except TimeoutError:
            is_ready = b""
        if not is_ready:
            with suppress(ProcessLookupError):
                process.kill()
            self._process = None
            await _ended(process)
            raise InfrastructureError(
                f"the process that asks {self._settings['base_url'] or 'the service'} did not "
                f"start within {_START_S:.0f} s, or ended: see its output above"
            )
        self._reading = asyncio.create_task(self._read(process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        # A last line that is cut off is of a process that was killed as it wrote.
        while (line := await process.stdout.readline()).endswith(b"\n"):
            try:
                message = json.loads(line)
                waiting = self._waiting.get(message["id"])
            except (ValueError, LookupError, TypeError):  # it does not say what it should
                break
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
        self._process = None
        for waiting in self._waiting.values():
            if not waiting.done():
                failure = TryFailed("the process that carried it ended", is_in_doubt=True)
                waiting.set_exception(failure)
        await _ended(process)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Nothing of it is left."""
    if process.stdin is not None:
        process.stdin.close()
    await process.wait()


async def wait_for_others(folder: Path, timeout_s: float, say: Callable[[str], object]) -> None:
    """Until the couriers of a driver that died have left what they got.

    Raises:
        InfrastructureError: they have not ended within `timeout_s`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline_s, is_told = time.monotonic() + timeout_s, False
    with (folder / LOCK).open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pass
            if not is_told:
                say("waiting for the answers to what the driver before was asking")
                is_told = True
            if time.monotonic() > deadline_s:
                raise InfrastructureError(
                    f"{folder / LOCK}: a process of the driver before still waits for answers "
                    f"after {timeout_s:.0f} s: go on with --resume when it has ended, by itself "
                    "once its timeout_s is over; end it, and what it asks for is paid for and lost"
                )
            await asyncio.sleep(0.05)


def undelivered(folder: Path) -> Iterator[tuple[Path, list[dict[str, str]]]]:
    """The files of answers that came for a driver that died; remove each once it is taken up."""
    for path in sorted(folder.glob(UNDELIVERED.format("*"))):
        lines = path.read_text("utf-8").splitlines()
        yield path, [json.loads(line) for line in lines]
