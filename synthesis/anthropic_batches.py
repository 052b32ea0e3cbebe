"""The batch interface of Anthropic: message batches."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from synthesis.asking import TryFailed
from synthesis.batch_client import ServiceError, by_key, told
from synthesis.endpoint import is_loopback
from synthesis.records import Answer, TeacherRequest, Usage
from synthesis.settings import Teacher

# It says of a batch only when it came and of how many requests it is: by its clock, and not ours.
_BEFORE_S = 300.0
_AFTER_S = 3600.0
_STATUS = {  # of the errors of single requests
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
}


class AnthropicBatches:
    """One teacher with `uses: anthropic-batch`."""

    most_requests = 100_000
    has_marks = False

    def __init__(self, settings: Teacher, key_variable: str | None) -> None:
        from anthropic import APIError, AsyncAnthropic, DefaultAsyncHttpxClient

        self.where = settings.base_url or "the Anthropic API"
        self._settings, self._error = settings, APIError
        self._client = AsyncAnthropic(
            base_url=settings.base_url,
            api_key=os.environ[key_variable] if key_variable else "none",
            max_retries=0,
            timeout=settings.timeout_s,
            http_client=DefaultAsyncHttpxClient(trust_env=not is_loopback(settings.base_url)),
        )
        self._batches = self._client.messages.batches

    async def models(self) -> list[str]:
        model = self._settings.model or ""
        patient = self._client.with_options(max_retries=2)
        with told(self._error):
            found = [model.id async for model in patient.models.list(limit=1000)]
            if found and model not in found:  # another name of one, perhaps
                try:
                    await patient.models.retrieve(model)
                    found.append(model)
                except self._error as error:
                    if getattr(error, "status_code", None) != 404:
                        raise
        return found

    async def submit(self, mark: str, requests: Sequence[TeacherRequest]) -> str:
        entries: list[Any] = [
            {"custom_id": request.key, "params": message_body(self._settings, request)}
            for request in requests
        ]
        with told(self._error):
            return (await self._batches.create(requests=entries)).id

    async def find(self, mark: str, at_s: float, requests: int) -> list[str]:
        found: list[str] = []
        with told(self._error):
            async for batch in self._batches.list(limit=100):  # the latest first
                created_s = batch.created_at.timestamp()
                if created_s < at_s - _BEFORE_S:
                    break
                counts = batch.request_counts
                ended = counts.succeeded + counts.errored + counts.canceled + counts.expired
                if counts.processing + ended == requests and created_s < at_s + _AFTER_S:
                    found.append(batch.id)
        return found

    async def results(self, batch_id: str) -> Mapping[str, str] | None:
        import httpx2

        with told(self._error):
            batch = await self._batches.retrieve(batch_id)
            if batch.processing_status != "ended":
                return None
            if not batch.results_url:  # kept for 29 days
                return {}
            # Not from `results_url`, where the key of another base_url does not belong.
            path = f"/v1/messages/batches/{batch_id}/results"
            response = await self._client.get(path, cast_to=httpx2.Response)
            return await by_key(response.content)

    def read(self, result: str, request: TeacherRequest) -> Answer:
        found = json.loads(result)["result"]
        if found["type"] == "succeeded":
            return read_message(found["message"], keep_reasoning=self._settings.keep_reasoning)
        error = found.get("error", {}).get("error", {})
        text = f"{error.get('type', found['type'])}: {error.get('message', '')}"
        raise ServiceError(_STATUS.get(error.get("type")), text)

    async def cancel(self, batch_id: str) -> None:
        with told(self._error):
            await self._batches.cancel(batch_id)

    async def close(self) -> None:
        await self._client.close()


def message_body(settings: Teacher, request: TeacherRequest) -> dict[str, Any]:
    """The parameters of a message that is one trace; those that are null are left out."""
    system = [message.content for message in request.messages if message.role == "system"]
    body = {
        "model": settings.model,
        "system": "\n\n".join(system) or None,
        "messages": [
            {"role": message.role, "content": message.content}
            for message in request.messages
            if message.role != "system"
        ],
        "temperature": request.temperature,
        "max_tokens": request.max_new_tokens,
        **settings.parameters,
    }
    return {name: value for name, value in body.items() if value is not None}


def read_message(message: Mapping[str, Any], *, keep_reasoning: bool) -> Answer:
    """Raises TryFailed if it is no message."""
    try:
        blocks, found = message["content"], message["usage"]
        text = "".join(block["text"] for block in blocks if block["type"] == "text")
        reasoning = "".join(block["thinking"] for block in blocks if block["type"] == "thinking")
        cached = int(found.get("cache_read_input_tokens") or 0)
        written = int(found.get("cache_creation_input_tokens") or 0)
        fresh = int(found["input_tokens"]) + written
        usage = Usage(fresh + cached, cached, int(found["output_tokens"]))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise TryFailed(f"the answer is no message: {error!r}") from None
    if keep_reasoning and reasoning:
        text = f"{reasoning.strip()}\n</think>\n\n{text}"
    return Answer(text, message.get("stop_reason") == "max_tokens", usage)
