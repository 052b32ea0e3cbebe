"""Rewards behind HTTP: JSON as docs/reward-api.yaml describes it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from rewards.backend import CallFailed
from rewards.protocol import API_VERSION, RewardRequest, RewardSpec
from rewards.settings import CallSettings
from rewards.wire import WireError, request_to_json, spec_from_json

MAX_ANSWER_BYTES = 16 * 2**20
_MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses worth another try


class HttpBackend:
    """`https://...`: GET answers the spec, POST scores a batch. No redirects, no proxies."""

    def __init__(self, url: str, token: str | None, settings: CallSettings) -> None:
        self._url, self._settings = url, settings
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.AsyncClient(
            headers=headers, follow_redirects=False, trust_env=False, timeout=None
        )

    @property
    def lanes(self) -> int:
        return self._settings.concurrency

    async def open(self, timeout_s: float) -> RewardSpec:
        answer = await self._ask("GET", None, min(timeout_s, self._settings.call_timeout_s))
        try:
            return spec_from_json(answer)
        except WireError as error:
            raise CallFailed("fault", str(error)) from None

    async def score(
        self, lane: int, batch: Sequence[RewardRequest], timeout_s: float
    ) -> Sequence[Any]:
        requests = [request_to_json(request) for request in batch]
        body = {"api_version": API_VERSION, "requests": requests}
        answer = await self._ask("POST", body, timeout_s)
        results = answer.get("results") if isinstance(answer, Mapping) else None
        if not isinstance(results, list):
            raise CallFailed("fault", "its answer has no list of results")
        return results

    async def _ask(self, method: str, body: Any, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                return json.loads(await self._exchange(method, body))
        except TimeoutError:
            raise CallFailed("timeout", f"no answer within {timeout_s:g} s") from None
        except httpx.HTTPError as error:
            message = f"{type(error).__name__}: {error}"
            raise CallFailed("transient", message) from None
        except ValueError:
            raise CallFailed("fault", "its answer is no JSON") from None

    async def _exchange(self, method: str, body: Any) -> bytes:
        async with self._client.stream(method, self._url, json=body) as response:
            if response.status_code != httpx.codes.OK:
                kind = "transient" if response.status_code in _MAY_PASS else "fault"
                raise CallFailed(kind, f"HTTP status {response.status_code}")
            chunks: list[bytes] = []
            size = 0
            async for chunk in response.aiter_bytes():
                chunks.append(chunk)
                size += len(chunk)
                if size > MAX_ANSWER_BYTES:
                    raise CallFailed("fault", f"its answer is over {MAX_ANSWER_BYTES:,} bytes")
            return b"".join(chunks)

    async def close(self) -> None:
        await self._client.aclose()
