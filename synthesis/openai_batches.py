"""The batch interface of OpenAI: files of requests, and files of answers."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from synthesis.batch_client import Invalid, NoRoom, ServiceError, by_key, told
from synthesis.endpoint import chat_body, is_loopback, read_completion
from synthesis.records import Answer, TeacherRequest
from synthesis.settings import Teacher

_MARK = "gavel"  # in the metadata of a batch


class OpenAIBatches:
    """One teacher with `uses: openai-batch`."""

    most_requests = 50_000
    has_marks = True

    def __init__(self, settings: Teacher, key_variable: str | None) -> None:
        from openai import APIError, AsyncOpenAI, DefaultAsyncHttpxClient

        self.where = settings.base_url or "the OpenAI API"
        self._settings, self._error = settings, APIError
        self._client = AsyncOpenAI(
            base_url=settings.base_url,
            api_key=os.environ[key_variable] if key_variable else "none",
            max_retries=0,
            timeout=settings.timeout_s,
            http_client=DefaultAsyncHttpxClient(trust_env=not is_loopback(settings.base_url)),
        )

    async def models(self) -> list[str]:
        with told(self._error):
            patient = self._client.with_options(max_retries=2)
            return [model.id async for model in patient.models.list()]

    async def submit(self, mark: str, requests: Sequence[TeacherRequest]) -> str:
        def lines() -> bytes:
            return b"\n".join(json.dumps(self._line(request)).encode() for request in requests)

        content = await asyncio.to_thread(lines)  # there may be 100 MB
        with told(self._error):
            file = await self._client.files.create(file=(f"{mark}.jsonl", content), purpose="batch")
            batch = await self._client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={_MARK: mark},
            )
        return batch.id

    def _line(self, request: TeacherRequest) -> dict[str, Any]:
        return {
            "custom_id": request.key,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": chat_body(self._settings, request),
        }

    async def find(self, mark: str, at_s: float, requests: int) -> list[str]:
        with told(self._error):
            async for batch in self._client.batches.list(limit=100):
                if (batch.metadata or {}).get(_MARK) == mark:
                    return [batch.id]
        return []

    async def results(self, batch_id: str) -> Mapping[str, str] | None:
        found: dict[str, str] = {}
        with told(self._error):
            batch = await self._client.batches.retrieve(batch_id)
            if batch.status == "failed":
                errors = (batch.errors.data if batch.errors else None) or []
                _refuse([(error.code, error.line, error.message or "") for error in errors])
            if batch.status not in ("completed", "expired", "cancelled"):
                return None
            for file_id in (batch.output_file_id, batch.error_file_id):
                if file_id:
                    content = await self._client.files.content(file_id)
                    found |= await by_key(content.content)
        return found

    def read(self, result: str, request: TeacherRequest) -> Answer:
        found = json.loads(result)
        response = found.get("response")
        if not response:  # the batch was ended before
            raise ServiceError(None, json.dumps(found.get("error")))
        status, body = response.get("status_code"), json.dumps(response.get("body"))
        if status != 200:
            raise ServiceError(status, body)
        chars = sum(len(message.content) for message in request.messages)
        keep = self._settings.keep_reasoning
        return read_completion(body, prompt_chars=chars, keep_reasoning=keep)

    async def cancel(self, batch_id: str) -> None:
        with told(self._error):
            await self._client.batches.cancel(batch_id)

    async def close(self) -> None:
        await self._client.close()


def _refuse(errors: list[tuple[str | None, int | None, str]]) -> NoReturn:
    """Raises NoRoom or Invalid, by what a batch failed for."""
    codes = {code for code, _, _ in errors}
    if "token_limit_exceeded" in codes:  # of all batches that are processed
        raise NoRoom("; ".join(text for _, _, text in errors))
    # A model that it has not is wrong in every line, of which it may name the first ones only.
    whole = "model_not_found" in codes
    raise Invalid([(None if whole else line, text) for _, line, text in errors])
