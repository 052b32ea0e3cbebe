"""A teacher's service on loopback that speaks OpenAI's chat completions, and misbehaves on request.

    python benchmarks/teacher_stub.py [--port 0] [--latency-ms 50] [--trouble 0.2] [--wrong 0.25]

It reads quickstart prompts and writes their traces, a share of them wrong; one that was told the
verdict writes for that. A share of the requests meets trouble in its first tries: 429 with and
without Retry-After, 500, a slow answer, a cut connection, malformed JSON, no choices, the same
choice twice. What it answers and how depends on the request alone. GET /stats tells what it would
charge for: each answer that it has finished writing, whether the client is still there or not.
Prints `listening on http://127.0.0.1:PORT/v1`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
from collections import Counter
from typing import Any

from aiohttp import web

from judging.errors import DataError
from judging.quickstart_teacher import teach
from judging.records import Message, PreferencePair, Presentation

MODEL = "stub-teacher"
TROUBLES = (
    "429 with Retry-After",
    "429",
    "500",
    "slow",
    "cut",
    "cut in the middle",
    "malformed JSON",
    "no choices",
    "same choice twice",
)
_PROMPT = re.compile(r"Q: (?P<q>.*)\nA: (?P<a>.*)\nB: (?P<b>.*)")
_TOLD = re.compile(r"correct verdict .*?\[\[([AB])\]\]")
_RETRY_AFTER_S = 0.3
_SLOW_S = 1.5


class Stub:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.tries: Counter[str] = Counter()  # of each request, by its key
        self.answered: Counter[str] = Counter()  # of these, written to their end
        self.troubles: Counter[str] = Counter()
        self.requests = self.input_tokens = self.output_tokens = 0
        self.in_flight = self.most_in_flight = 0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._complete(request)
        finally:
            self.in_flight -= 1

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        key = request.headers.get("Idempotency-Key", "")
        if (
            self._options.key
            and request.headers.get("Authorization") != f"Bearer {self._options.key}"
        ):
            return web.json_response({"error": {"message": "wrong key"}}, status=401)
        body = await request.json()
        self.requests += 1
        self.tries[key] += 1
        # Shielded from the client's going away: a service goes on, and charges.
        return await asyncio.shield(asyncio.ensure_future(self._serve(request, key, body)))

    async def _serve(
        self, request: web.Request, key: str, body: dict[str, Any]
    ) -> web.StreamResponse:
        await asyncio.sleep(self._options.latency_ms / 1000)
        trouble = self._trouble(key)
        if trouble:
            self.troubles[trouble] += 1
        match trouble:
            case "429 with Retry-After":
                headers = {"Retry-After": f"{_RETRY_AFTER_S}"}
                return web.json_response({"error": {}}, status=429, headers=headers)
            case "429" | "500":
                return web.json_response({"error": {"message": "busy"}}, status=int(trouble))
            case "slow":
                await asyncio.sleep(_SLOW_S)
            case "cut":
                if request.transport is not None:
                    request.transport.abort()
                return web.Response(status=500)
            case "malformed JSON":
                return web.Response(text='{"choices": [{"mess', content_type="application/json")
            case "no choices":
                return web.json_response({"choices": [], "usage": None})
        completion = self._completion(key, body, twice=trouble == "same choice twice")
        content = json.dumps(completion)
        if trouble == "cut in the middle":
            return await _cut(request, content)
        self.answered[key] += 1
        self.input_tokens += completion["usage"]["prompt_tokens"]
        self.output_tokens += completion["usage"]["completion_tokens"]
        return web.Response(text=content, content_type="application/json")

    def _trouble(self, key: str) -> str | None:
        """Of the first tries of a share of the requests; later ones go well."""
        drawn = int(hashlib.sha256(f"trouble/{key}".encode()).hexdigest()[:8], 16)
        tries = self.tries[key]
        if (drawn % 10_000) / 10_000 >= self._options.trouble or tries > 1 + drawn % 3:
            return None
        return TROUBLES[(drawn // 10_000 + tries) % len(TROUBLES)]

    def _completion(self, key: str, body: dict[str, Any], *, twice: bool) -> dict[str, Any]:
        prompt = "\n".join(message["content"] for message in body["messages"])
        text = self._trace(key, prompt)
        usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(text) // 4}
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {
            "id": f"chatcmpl-{key}",
            "object": "chat.completion",
            "model": body["model"],
            "choices": [{"index": 0, **choice}, *([{"index": 1, **choice}] if twice else [])],
            "usage": usage,
        }

    def _trace(self, key: str, prompt: str) -> str:
        found = _PROMPT.search(prompt)
        if found is None or self._options.nonsense:
            return "I would rather not say."
        question = (Message("user", found["q"]),)
        shown = Presentation(PreferencePair("-", question, found["a"], found["b"]), "chosen_first")
        told = _TOLD.search(prompt)
        try:
            if told:
                return teach(shown, letter="A" if told[1] == "A" else "B")
            right = teach(shown)
            drawn = int(hashlib.sha256(f"wrong/{key}".encode()).hexdigest()[:8], 16)
            if (drawn % 10_000) / 10_000 < self._options.wrong:
                return teach(shown, letter="B" if right.endswith("[[A]]</answer>") else "A")
            return right
        except DataError as error:
            return str(error)

    async def models(self, request: web.Request) -> web.Response:
        if (
            self._options.key
            and request.headers.get("Authorization") != f"Bearer {self._options.key}"
        ):
            return web.json_response({"error": {"message": "wrong key"}}, status=401)
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def stats(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "requests": self.requests,
                "answered": sum(self.answered.values()),
                "answered_twice": sum(count > 1 for count in self.answered.values()),
                "input_tokens": self.input_tokens,
                "output_tokens": self.output_tokens,
                "most_in_flight": self.most_in_flight,
                "troubles": dict(self.troubles),
            }
        )


async def _cut(request: web.Request, content: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(len(content.encode()))})
    response.content_type = "application/json"
    await response.prepare(request)
    await response.write(content[: len(content) // 2].encode())
    if request.transport is not None:
        request.transport.abort()
    return response


async def serve(options: argparse.Namespace) -> None:
    stub = Stub(options)
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", stub.complete)
    app.router.add_get("/v1/models", stub.models)
    app.router.add_get("/stats", stub.stats)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", options.port)
    await site.start()
    port = runner.addresses[0][1]
    print(f"listening on http://127.0.0.1:{port}/v1", flush=True)
    await asyncio.Event().wait()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--port", type=int, default=0)
    made.add_argument("--latency-ms", type=float, default=50.0)
    made.add_argument("--trouble", type=float, default=0.0, help="share of requests")
    made.add_argument("--wrong", type=float, default=0.25, help="share of first answers")
    made.add_argument("--nonsense", action="store_true", help="no answer holds a verdict")
    made.add_argument("--key", default="", help="that requests must bear")
    return made


if __name__ == "__main__":
    asyncio.run(serve(parser().parse_args()))
