"""The process that carries requests to an endpoint: a child of the driver, and outlives it.

Reads requests as JSON lines from its input and writes what came of each to its output, until the
input ends. What the service has been asked it will charge for, so that a driver that was killed
must not lose the answer: the courier then waits for what is in flight, and writes the answers that
the driver had not written down into a file, which the next driver reads (`couriers.py`).

It makes one try of each request. Rates, pauses and further tries are the driver's.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from urllib.request import getproxies, proxy_bypass
from uuid import uuid4

from aiohttp import (
    ClientConnectorError,
    ClientHttpProxyError,
    ClientSession,
    ClientTimeout,
    ConnectionTimeoutError,
    DummyCookieJar,
    InvalidURL,
    TCPConnector,
)

if TYPE_CHECKING:
    from httpx2 import URL

LOCK = "couriers.lock"
UNDELIVERED = "undelivered-{}.jsonl"
_KEPT = ("location", "retry-after", "retry-after-ms")
_CONNECT_S = 30.0
_NEVER_SENT = (ClientConnectorError, ClientHttpProxyError, ConnectionTimeoutError, InvalidURL)
_LOGIN = re.compile(r"[^\s'\"]+@")  # of a proxy, in the address that an error repeats


class Courier:
    def __init__(self, settings: dict[str, Any], answers: asyncio.WriteTransport) -> None:
        self._folder = Path(settings["folder"])
        self._settings, self._answers = settings, answers
        self._unwritten: dict[str, str] = {}  # key -> body, not yet in the driver's ledger
        self._tasks: set[asyncio.Task[None]] = set()
        self._to_say: list[str] = []

    async def run(self, lines: asyncio.StreamReader) -> None:
        """Until the input ends and what was sent is answered."""
        self._url, self._session = connect(self._settings)
        self._say({"ready": True})
        # A last line that is cut off is of a driver that was killed as it wrote.
        while (line := await lines.readline()).endswith(b"\n"):
            message = json.loads(line)
            if "written" in message:
                self._unwritten.pop(message["written"], None)
                continue
            task = asyncio.create_task(self._carry(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._leave()
        await self._session.close()

    async def _carry(self, message: dict[str, Any]) -> None:
        found: dict[str, Any] = {"id": message["id"]}
        try:
            found |= await self._post(message)
        except Exception as error:  # whatever the libraries raise is a try that failed
            found |= _unanswered(error, message["timeout_s"])
        if found.get("status") == 200:
            self._unwritten[message["key"]] = found["body"]
        self._say(found)

    async def _post(self, message: dict[str, Any]) -> dict[str, Any]:
        data, headers = json.dumps(message["body"]).encode(), {"Idempotency-Key": message["key"]}
        async with (
            asyncio.timeout(message["timeout_s"]),
            self._session.post(
                self._url, data=data, headers=headers, allow_redirects=False
            ) as response,
        ):
            body = await response.text("utf-8", errors="replace")
        kept = {name: response.headers[name] for name in _KEPT if name in response.headers}
        return {"status": response.status, "headers": kept, "body": body}

    def _say(self, message: dict[str, Any]) -> None:
        if not self._to_say:  # what comes in one round of the loop is written at once
            asyncio.get_running_loop().call_soon(self._write)
        self._to_say.append(json.dumps(message) + "\n")

    def _write(self) -> None:
        text = "".join(self._to_say)
        self._to_say.clear()
        if not self._answers.is_closing():  # else the driver is gone, and the next one is told
            self._answers.write(text.encode())

    def _leave(self) -> None:
        """What the driver did not live to write down."""
        if not self._unwritten:
            return
        path = self._folder / UNDELIVERED.format(uuid4().hex)
        partial = path.with_suffix(".tmp")
        with partial.open("w", encoding="utf-8") as file:
            for key, body in self._unwritten.items():
                teacher = self._settings["teacher"]
                file.write(json.dumps({"teacher": teacher, "key": key, "body": body}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)


def connect(settings: Mapping[str, Any]) -> tuple[str, ClientSession]:
    """Where chat completions are asked for, and by what. Address, headers and trusted certificates
    are those of the `openai` client; it takes four times as long for a request as the connection
    beneath it."""
    import httpx2
    from openai import AsyncOpenAI

    key_variable, certificates = settings["api_key_env"], httpx2.create_ssl_context()
    client = AsyncOpenAI(
        base_url=settings["base_url"],
        api_key=os.environ[key_variable] if key_variable else "none",
        http_client=httpx2.AsyncClient(trust_env=False, verify=certificates),  # asks nothing
    )
    headers = httpx2.Headers(client.auth_headers)
    for name, value in client.default_headers.items():
        if isinstance(value, str):
            headers[name] = value
    session = ClientSession(
        connector=TCPConnector(limit=0, ssl=certificates),
        cookie_jar=DummyCookieJar(),
        headers=dict(headers),
        proxy=proxy_of(client.base_url) if settings["trust_env"] else None,
        timeout=ClientTimeout(total=None, sock_connect=_CONNECT_S),
    )
    return f"{str(client.base_url).rstrip('/')}/chat/completions", session


def proxy_of(url: URL) -> str | None:
    """Of the environment. aiohttp itself would read .netrc as well, which stands above keys."""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or _is_exempt(url, proxies.get("no", "")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_exempt(url: URL, exempt: str) -> bool:
    """As the `openai` client reads it: urllib knows no networks and no wildcards."""
    if proxy_bypass(url.host) or proxy_bypass(url.netloc.decode()):
        return True
    for each in map(str.strip, exempt.split(",")):
        if each == "*" or (each.startswith("*.") and url.host.endswith(each[1:])):
            return True
        with suppress(ValueError):
            if ip_address(url.host) in ip_network(each, strict=False):
                return True
    return False


def _unanswered(error: Exception, timeout_s: float) -> dict[str, Any]:
    never_sent = isinstance(error, _NEVER_SENT)
    is_late = isinstance(error, TimeoutError) and not never_sent
    why = str(error) or repr(error)
    what = f"no answer within {timeout_s:g} s" if is_late else f"the connection failed: {why}"
    return {"error": _LOGIN.sub("", what), "is_in_doubt": not never_sent}


async def _main(answers: TextIO) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):  # the driver ends it, by the end of its input
        loop.add_signal_handler(number, lambda: None)
    lines = asyncio.StreamReader(limit=2**30)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    # Never waits for the driver, which may be stopped itself: deadlines would pass meanwhile.
    said, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, answers)
    settings = json.loads(await lines.readline())
    with (Path(settings["folder"]) / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # until this process ends
        await Courier(settings, said).run(lines)


if __name__ == "__main__":
    ours, sys.stdout = sys.stdout, sys.stderr  # the second for what libraries have to say
    asyncio.run(_main(ours))
