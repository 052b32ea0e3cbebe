"""Python rewards in processes of their own, killed when they overrun and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.backend import START_TIMEOUT_S, CallFailed
from rewards.protocol import RewardRequest, RewardResult, RewardSpec
from rewards.settings import CallSettings
from rewards.wire import WireError, request_to_json, spec_from_json

_LINE_LIMIT = 64 * 2**20  # bytes of one line of JSON
_KEPT_ERROR_LINES = 5
_NOT_THE_REWARDS = ("GAVEL_STORE_PASSWORD", "RAY_AUTH_TOKEN")  # secrets of the run itself


class ProcessBackend:
    """`import:module:attribute`; each lane is one process."""

    def __init__(
        self, module: str, attribute: str, options: Mapping[str, Any], settings: CallSettings
    ) -> None:
        self._order = {
            "module": module,
            "attribute": attribute,
            "options": dict(options),
            "memory_mib": settings.memory_mib,
            "cpus": settings.cpus,
        }
        self._children: list[_Child | None] = [None] * settings.concurrency

    @property
    def lanes(self) -> int:
        return len(self._children)

    async def open(self, timeout_s: float) -> RewardSpec:
        self._children[0] = child = await _start(self._order, timeout_s)
        return child.spec

    async def score(
        self, lane: int, batch: Sequence[RewardRequest], timeout_s: float
    ) -> Sequence[Any]:
        child = self._children[lane]
        if child is None:
            # Starting is the host's matter and takes none of the reward's own time.
            child = self._children[lane] = await _start(self._order, START_TIMEOUT_S)
        answers: list[Any] = []
        try:
            async with asyncio.timeout(timeout_s):
                await child.score(batch, answers)
        except TimeoutError:
            await self._kill(lane)
            message = f"no answer within {timeout_s:g} s; its process was killed"
            raise CallFailed("timeout", message, answers) from None
        except _Ended:
            message = await self._kill(lane)
            raise CallFailed("died", f"its process ended: {message}", answers) from None
        except CallFailed as failure:
            failure.partial = answers
            raise
        except BaseException:  # cancelled midway: the pipes hold half a conversation
            await self._kill(lane)
            raise
        return answers

    async def _kill(self, lane: int) -> str:
        child, self._children[lane] = self._children[lane], None
        return await child.kill() if child is not None else ""

    async def close(self) -> None:
        await asyncio.gather(*(self._kill(lane) for lane in range(self.lanes)))


class _Ended(Exception):
    """The process closed its end."""


@dataclass(slots=True, eq=False)
class _Child:
    process: Process
    errors: deque[str]
    reading: asyncio.Task[None]
    spec: RewardSpec = RewardSpec("unopened")  # noqa: RUF009  # frozen

    async def ask(self, value: Any) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(value).encode() + b"\n")
            await self.process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise _Ended from None

    async def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise _Ended
        return json.loads(line)

    async def score(self, batch: Sequence[RewardRequest], answers: list[Any]) -> None:
        await self.ask([request_to_json(request) for request in batch])
        while True:
            match await self.answer():
                case {"result": result}:
                    answers.append(result)
                case {"id": str(name), "problem": problem}:
                    answers.append(RewardResult(name, "error", error=problem))
                case {"problem": problem}:
                    answers.append({"problem": problem})
                case {"failed": message}:
                    raise CallFailed("fault", message)
                case _:
                    return

    async def kill(self) -> str:
        """Ends the process and all that it started; returns how it ended and what it said last."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code = await self.process.wait()
        with contextlib.suppress(TimeoutError):  # a grandchild may hold the pipe open
            await asyncio.wait_for(self.reading, 1.0)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return "; ".join([how, *self.errors])


async def _start(order: Mapping[str, Any], timeout_s: float) -> _Child:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "rewards.child",
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        limit=_LINE_LIMIT,
        start_new_session=True,
        env=_environment(),
    )
    errors: deque[str] = deque(maxlen=_KEPT_ERROR_LINES)
    assert process.stderr is not None
    child = _Child(process, errors, asyncio.create_task(_keep_last(process.stderr, errors)))
    try:
        async with asyncio.timeout(timeout_s):
            await child.ask({**order, "parent": os.getpid()})
            child.spec = _spec(await child.answer())
    except TimeoutError:
        said = await child.kill()
        raise CallFailed("timeout", f"did not load within {timeout_s:g} s: {said}") from None
    except _Ended:
        said = await child.kill()
        raise CallFailed("died", f"its process ended while loading: {said}") from None
    except BaseException:
        await child.kill()
        raise
    return child


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_THE_REWARDS}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _spec(answer: Mapping[str, Any]) -> RewardSpec:
    if refused := answer.get("refused"):
        raise CallFailed("fault", str(refused))
    try:
        return spec_from_json(answer.get("spec"))
    except WireError as error:
        raise CallFailed("fault", str(error)) from None


async def _keep_last(stream: asyncio.StreamReader, lines: deque[str]) -> None:
    while chunk := await stream.read(2**16):
        lines.extend(line for line in chunk.decode(errors="replace").splitlines() if line.strip())
