"""A stand-in for the batch interfaces of OpenAI and Anthropic, and of what they charge for."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

MODEL, KEY = "writer-1", "a-key"


@dataclass
class Kept:
    """One batch at the service."""

    id: str
    requests: list[dict[str, Any]]  # as they were sent
    created_s: float
    polls: int  # before it is ended
    metadata: dict[str, str] = field(default_factory=dict)
    is_cancelled: bool = False
    errors: list[dict[str, Any]] | None = None  # OpenAI: found in validation

    @property
    def keys(self) -> list[str]:
        return [request["custom_id"] for request in self.requests]

    @property
    def is_ended(self) -> bool:
        return self.polls <= 0 or self.is_cancelled


@dataclass
class BatchStub:
    """What happens to a request is in `fates`, by its text or by its batch and its text; what
    happens to the next calls of one name is in `faults`: a status, a status with a Retry-After,
    `cut` (the connection) or `hang` before it is done, `cut after` or `hang after`."""

    clock: Callable[[], float]
    url: str = ""
    polls: int = 2  # before a batch is ended
    batches: dict[str, Kept] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    fates: dict[str, str] = field(default_factory=dict)
    faults: dict[str, list[Any]] = field(default_factory=dict)
    refusals: list[list[dict[str, Any]]] = field(default_factory=list)  # of the next batches
    calls: Counter[str] = field(default_factory=Counter)
    hangs: asyncio.Event = field(default_factory=asyncio.Event)
    is_over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def billed(self) -> Counter[str]:
        """How often each key was taken to be answered."""
        kept = [batch for batch in self.batches.values() if not batch.errors]
        return Counter(key for batch in kept for key in batch.keys)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**30)
        for method, path, name, handler in (
            ("GET", "/v1/models", "models", self._models),
            ("GET", "/v1/models/{id}", "model", self._model),
            ("POST", "/v1/files", "upload", self._upload),
            ("GET", "/v1/files/{id}/content", "content", self._content),
            ("POST", "/v1/batches", "create", self._create_openai),
            ("GET", "/v1/batches", "list", self._list_openai),
            ("GET", "/v1/batches/{id}", "retrieve", self._retrieve_openai),
            ("POST", "/v1/batches/{id}/cancel", "cancel", self._cancel_openai),
            ("POST", "/v1/messages/batches", "create", self._create_anthropic),
            ("GET", "/v1/messages/batches", "list", self._list_anthropic),
            ("GET", "/v1/messages/batches/{id}", "retrieve", self._retrieve_anthropic),
            ("GET", "/v1/messages/batches/{id}/results", "content", self._results_anthropic),
            ("POST", "/v1/messages/batches/{id}/cancel", "cancel", self._cancel_anthropic),
        ):
            app.router.add_route(method, path, self._faulty(name, handler))
        return app

    def _faulty(
        self, name: str, handler: Callable[[web.Request], Awaitable[web.Response]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            self.calls[name] += 1
            if request.headers.get("Authorization", "").removeprefix("Bearer ") != KEY and (
                request.headers.get("X-Api-Key") != KEY
            ):
                return _error(401, "no such key")
            fault = self.faults[name].pop(0) if self.faults.get(name) else None
            if isinstance(fault, int):
                return _error(fault, f"fault {fault}")
            if isinstance(fault, tuple):
                return _error(fault[0], "slower", {"Retry-After": str(fault[1])})
            if fault is None:
                return await handler(request)
            if fault.endswith("after"):
                await handler(request)
            if fault.startswith("hang"):
                self.hangs.set()
                await self.is_over.wait()
            assert request.transport is not None
            request.transport.close()
            return web.Response()

        return handle

    # ---- both ------------------------------------------------------------------------------------

    async def _models(self, request: web.Request) -> web.Response:
        models = [{"id": MODEL, "type": "model"}, {"id": "other", "type": "model"}]
        return web.json_response({"object": "list", "data": models, "has_more": False})

    async def _model(self, request: web.Request) -> web.Response:
        if request.match_info["id"] != "writer-latest":
            return _error(404, "no such model")
        return web.json_response({"id": MODEL, "type": "model"})

    def add(self, requests: list[dict[str, Any]], metadata: dict[str, str] | None = None) -> Kept:
        name = f"batch_{len(self.batches)}"
        kept = Kept(name, requests, float(int(self.clock())), self.polls, metadata or {})
        self.batches[name] = kept
        return kept

    def _poll(self, request: web.Request) -> Kept | None:
        if kept := self.batches.get(request.match_info["id"]):
            kept.polls -= 1
        return kept

    def _fate(self, kept: Kept, text: str) -> str:
        if kept.is_cancelled:
            return "expired"
        return self.fates.get(f"{kept.id}/{text}") or self.fates.get(text, "answered")

    # ---- OpenAI ----------------------------------------------------------------------------------

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch"
        name = f"file_{len(self.files)}"
        self.files[name] = form["file"].file.read()  # pyright: ignore
        return web.json_response({"id": name, "object": "file"})

    async def _create_openai(self, request: web.Request) -> web.Response:
        asked = await request.json()
        assert (asked["endpoint"], asked["completion_window"]) == ("/v1/chat/completions", "24h")
        lines = self.files[asked["input_file_id"]].splitlines()
        kept = self.add([json.loads(line) for line in lines], asked["metadata"])
        kept.errors = self.refusals.pop(0) if self.refusals else None
        return web.json_response(self._openai(kept))

    async def _list_openai(self, request: web.Request) -> web.Response:
        found = [self._openai(kept) for kept in reversed(self.batches.values())]
        return web.json_response({"object": "list", "data": found, "has_more": False})

    async def _retrieve_openai(self, request: web.Request) -> web.Response:
        kept = self._poll(request)
        return web.json_response(self._openai(kept)) if kept else _error(404, "no such batch")

    async def _cancel_openai(self, request: web.Request) -> web.Response:
        kept = self.batches[request.match_info["id"]]
        kept.is_cancelled = True
        return web.json_response(self._openai(kept))

    def _openai(self, kept: Kept) -> dict[str, Any]:
        status = "completed" if kept.is_ended else "in_progress"
        found: dict[str, Any] = {"id": kept.id, "object": "batch", "metadata": kept.metadata}
        if kept.errors is not None:
            return found | {"status": "failed", "errors": {"object": "list", "data": kept.errors}}
        if kept.is_cancelled:
            status = "cancelled"
        if kept.is_ended:
            found |= {"output_file_id": f"{kept.id}-out", "error_file_id": f"{kept.id}-err"}
        return found | {"status": status, "created_at": int(kept.created_s)}

    async def _content(self, request: web.Request) -> web.Response:
        name, _, kind = request.match_info["id"].rpartition("-")
        kept = self.batches[name]
        lines = [
            line
            for asked in kept.requests
            if (line := self._openai_line(kept, asked)) is not None
            and ((line["response"] or {}).get("status_code") == 200) == (kind == "out")
        ]
        return web.Response(body="".join(json.dumps(line) + "\n" for line in lines).encode())

    def _openai_line(self, kept: Kept, asked: dict[str, Any]) -> dict[str, Any] | None:
        text = asked["body"]["messages"][-1]["content"]
        fate = self._fate(kept, text)
        line: dict[str, Any] = {"custom_id": asked["custom_id"], "response": None, "error": None}
        if fate == "missing":
            return None
        if fate == "expired":
            return line | {"error": {"code": "batch_expired", "message": "too late"}}
        if fate in ("invalid", "broken"):
            status = 400 if fate == "invalid" else 500
            body: dict[str, Any] = {"error": {"message": fate}}
        else:
            status = 200
            body = {
                "choices": [
                    {
                        "message": {"content": f"to {text}"},
                        "finish_reason": "length" if fate == "cut" else "stop",
                    }
                ],
                "usage": {
                    "prompt_tokens": 17,
                    "completion_tokens": 5,
                    "prompt_tokens_details": {"cached_tokens": 4},
                },
            }
        return line | {"response": {"status_code": status, "body": body}}

    # ---- Anthropic -------------------------------------------------------------------------------

    async def _create_anthropic(self, request: web.Request) -> web.Response:
        kept = self.add((await request.json())["requests"])
        return web.json_response(self._anthropic(kept))

    async def _list_anthropic(self, request: web.Request) -> web.Response:
        found = [self._anthropic(kept) for kept in reversed(self.batches.values())]
        return web.json_response({"data": found, "has_more": False})

    async def _retrieve_anthropic(self, request: web.Request) -> web.Response:
        kept = self._poll(request)
        return web.json_response(self._anthropic(kept)) if kept else _error(404, "no such batch")

    async def _cancel_anthropic(self, request: web.Request) -> web.Response:
        kept = self.batches[request.match_info["id"]]
        kept.is_cancelled = True
        return web.json_response(self._anthropic(kept))

    def _anthropic(self, kept: Kept) -> dict[str, Any]:
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        counts["succeeded" if kept.is_ended else "processing"] = len(kept.requests)
        created = datetime.fromtimestamp(kept.created_s, UTC).isoformat()
        return {
            "id": kept.id,
            "type": "message_batch",
            "created_at": created,
            "expires_at": created,
            "processing_status": "ended" if kept.is_ended else "in_progress",
            "request_counts": counts,
            "results_url": "https://elsewhere.invalid/results" if kept.is_ended else None,
        }

    async def _results_anthropic(self, request: web.Request) -> web.Response:
        kept = self.batches[request.match_info["id"]]
        lines = [
            {"custom_id": asked["custom_id"], "result": result}
            for asked in kept.requests
            if (result := self._anthropic_result(kept, asked)) is not None
        ]
        return web.Response(body="".join(json.dumps(line) + "\n" for line in lines).encode())

    def _anthropic_result(self, kept: Kept, asked: dict[str, Any]) -> dict[str, Any] | None:
        text = asked["params"]["messages"][-1]["content"]
        fate = self._fate(kept, text)
        if fate == "missing":
            return None
        if fate == "expired":
            return {"type": "expired"}
        if fate in ("invalid", "broken"):
            kind = "invalid_request_error" if fate == "invalid" else "api_error"
            error = {"type": "error", "error": {"type": kind, "message": fate}}
            return {"type": "errored", "error": error}
        message = {
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": f"to {text}"},
            ],
            "stop_reason": "max_tokens" if fate == "cut" else "end_turn",
            "usage": {
                "input_tokens": 10,
                "cache_creation_input_tokens": 3,
                "cache_read_input_tokens": 4,
                "output_tokens": 5,
            },
        }
        return {"type": "succeeded", "message": message}


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {"type": "error", "error": {"type": "an_error", "message": text}}
    return web.json_response(body, status=status, headers=headers)


@asynccontextmanager
async def serving(stub: BatchStub) -> AsyncIterator[BatchStub]:
    runner = web.AppRunner(stub.app(), shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield stub
    finally:
        stub.is_over.set()
        await runner.cleanup()
