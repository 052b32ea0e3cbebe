"""What stands before the application: token, limits, queue, deadline, clients that go away, end.

Owns when a request is taken and what it is answered when it is not. An answer is sent whole or not
at all: what the application answers is held back until it is complete.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from serving.gate import Closed, Full, Gate
from serving.metrics import CLOCK, Clock, Metrics
from serving.settings import TOKEN_VARIABLE, ServeSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = "/health"  # to GET it needs no token
RETRY_S = 1
_DISCARD, _DISCARD_S = 8, 1.0  # of the rest of a refused body: times max_body_bytes, and how long
_log = logging.getLogger("gavel.serve")


class Refused(Exception):
    """An answer other than that of the application."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


class Gone(Exception):
    """The client does not wait for an answer."""


def error_body(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message}}


class _Inbox:
    """What a request's client sends."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_over = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._is_over = message["type"] != "http.request" or not message.get("more_body")
        return message

    async def discard(self, max_bytes: int) -> None:
        """The rest of a body: a client that still sends it would not get to see the answer."""
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_S):
                while not self._is_over and size < max_bytes:
                    size += len((await self.receive()).get("body", b""))


class Guard:
    """ASGI, around an application whose POST routes judge."""

    def __init__(
        self, app: App, settings: ServeSettings, gate: Gate, metrics: Metrics, token: str | None
    ) -> None:
        self._app, self._settings, self._gate, self._metrics = app, settings, gate, metrics
        self._token = None if token is None else token.encode()
        self.paths: frozenset[str] = frozenset()  # that are counted by name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        clock = Clock()
        path = scope["path"] if scope["path"] in self.paths else "other"
        inbox = _Inbox(receive)
        try:
            status, answer = await self._answer(scope, inbox.receive, clock)
        except Refused as refusal:
            status, answer = refusal.status, _refusal(refusal)
            if scope["method"] == "POST":
                await inbox.discard(_DISCARD * self._settings.max_body_bytes)
        except Gone:
            self._metrics.finished(path, "gone", clock)
            return
        except Exception as error:  # a fault of ours: the client is told no more than that
            _log.exception("%s failed: %s", path, type(error).__name__)
            refusal = Refused(500, "internal", "the server failed; its log says how")
            status, answer = 500, _refusal(refusal)
        self._metrics.finished(path, str(status), clock)
        answer[0]["headers"].append((b"server-timing", clock.server_timing.encode()))
        for message in answer:
            await send(message)

    async def _answer(
        self, scope: Scope, receive: Receive, clock: Clock
    ) -> tuple[int, list[Message]]:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if (scope["method"], scope["path"]) != ("GET", OPEN):
            self._authorize(headers.get(b"authorization", b""))
        if scope["method"] != "POST":
            return await _collected(self._app, scope, receive)
        try:
            with self._gate.admission():
                body = await self._body(headers, receive)
                clock.began = time.perf_counter()
                return await self._judged(scope, body, receive, clock)
        except Full:
            raise Refused(
                429, "overloaded", f"the queue is full: try again in {RETRY_S} s"
            ) from None
        except Closed:
            raise _ending() from None

    def _authorize(self, header: bytes) -> None:
        if self._token is None:
            return
        kind, _, value = header.partition(b" ")
        given = value.strip() if kind.lower() == b"bearer" else None
        if kind.lower() == b"basic":  # of a URL http://:TOKEN@host, for clients that set no header
            try:
                given = base64.b64decode(value, validate=True).partition(b":")[2]
            except binascii.Error:
                given = None
        if given is None or not hmac.compare_digest(given, self._token):
            raise Refused(
                401, "unauthorized", f"send Authorization: Bearer and the server's {TOKEN_VARIABLE}"
            )

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise Refused(415, "media_type", "send JSON, with Content-Type: application/json")
        limit = self._settings.max_body_bytes
        stated = headers.get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > limit:
            raise _too_large(limit)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._settings.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    size += len(message.get("body", b""))
                    if size > limit:
                        raise _too_large(limit)
                    parts.append(message.get("body", b""))
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Refused(
                408, "slow", f"the request was not received within {self._settings.body_s:g} s"
            ) from None

    async def _judged(
        self, scope: Scope, body: bytes, receive: Receive, clock: Clock
    ) -> tuple[int, list[Message]]:
        """Runs the application in its turn, until it answers or something else comes first."""
        work = asyncio.create_task(self._in_turn(scope, body, clock))
        left = asyncio.create_task(_disconnected(receive))
        ended = asyncio.create_task(self._gate.abandoned.wait())
        deadline_s = self._settings.deadline_s
        try:
            await asyncio.wait(
                (work, left, ended), timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED
            )
            if work.done():
                return work.result()
        finally:
            for task in (work, left, ended):
                task.cancel()
            await asyncio.gather(work, left, ended, return_exceptions=True)
        if self._gate.abandoned.is_set():
            raise _ending()
        if left.done() and not left.cancelled():
            raise Gone
        if not clock.queue_s:
            raise Refused(503, "overloaded", f"still queued after {deadline_s:g} s: try again")
        raise Refused(504, "deadline", f"still judged after {deadline_s:g} s: ask for less at once")

    async def _in_turn(self, scope: Scope, body: bytes, clock: Clock) -> tuple[int, list[Message]]:
        asked = time.perf_counter()
        async with self._gate.turn():
            clock.queue_s = time.perf_counter() - asked
            CLOCK.set(clock)
            return await _collected(self._app, scope, _replay(body))


async def _collected(app: App, scope: Scope, receive: Receive) -> tuple[int, list[Message]]:
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, send)
    messages[0]["headers"] = list(messages[0].get("headers", ()))
    return messages[0]["status"], messages


def _replay(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(limit: int) -> Refused:
    return Refused(413, "too_large", f"the request has more than {limit:,} bytes")


def _ending() -> Refused:
    return Refused(503, "ending", "the server is ending: try again, there or at another")


def _refusal(refusal: Refused) -> list[Message]:
    body = json.dumps(error_body(refusal.kind, str(refusal))).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if refusal.status in (429, 503):
        headers.append((b"retry-after", str(RETRY_S).encode()))
    if refusal.status in (408, 413, 415, 429, 503):  # it may not have been read to its end
        headers.append((b"connection", b"close"))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return [
        {"type": "http.response.start", "status": refusal.status, "headers": headers},
        {"type": "http.response.body", "body": body},
    ]
