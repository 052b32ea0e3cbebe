"""An endpoint that speaks OpenAI's chat completions: a service in the network, or `vllm serve`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from judging.errors import ConfigurationError, InfrastructureError
from synthesis.asking import TryFailed
from synthesis.couriers import Couriers
from synthesis.records import Answer, RequestFailed, TeacherRequest, Usage
from synthesis.settings import Teacher

OVERLOADED = (429, 503, 529)
PASSING = (408, 409, 425, 500, 502, 504)  # may be otherwise the next time
_CHARS_PER_TOKEN = 4.0  # about; where a service does not count
_CHECK_S = 30.0
_SHOWN_CHARS = 300


class Endpoint:
    """One teacher with `uses: openai`."""

    def __init__(
        self, name: str, settings: Teacher, *, folder: Path, key_variable: str | None
    ) -> None:
        self._name, self._settings, self._key_variable = name, settings, key_variable
        self._couriers = Couriers(
            {
                "teacher": name,
                "folder": str(folder),
                "base_url": settings.base_url,
                "api_key_env": key_variable,
                "trust_env": not is_loopback(settings.base_url),
            }
        )

    async def check(self) -> None:
        from openai import APIConnectionError, APIStatusError, AsyncOpenAI

        where = self._settings.base_url or "the OpenAI API"
        client = AsyncOpenAI(
            base_url=self._settings.base_url,
            api_key=os.environ[self._key_variable] if self._key_variable else "none",
            max_retries=2,
            timeout=_CHECK_S,
        )
        try:
            models = [model.id async for model in await client.models.list()]
        except APIStatusError as error:
            if error.status_code in (404, 405, 501):  # it does not tell
                return
            refuse_status(self._name, where, error.status_code, error.message, self._key_variable)
            raise InfrastructureError(
                f"synthesize.teachers.{self._name}: {where} answers {error.status_code} to the "
                f"question which models it has: {error.message[:_SHOWN_CHARS]}"
            ) from None
        except APIConnectionError as error:
            raise InfrastructureError(
                f"synthesize.teachers.{self._name}: {where} cannot be reached "
                f"({error.__cause__ or error}): start it, or correct base_url"
            ) from error
        finally:
            await client.close()
        check_model(self._name, where, self._settings.model, models)

    async def answer(self, request: TeacherRequest) -> Answer:
        settings = self._settings
        body = chat_body(settings, request)
        found = await self._couriers.post(request.key, body, settings.timeout_s)
        if "error" in found:
            raise TryFailed(found["error"], is_in_doubt=found.get("is_in_doubt", False))
        if found["status"] != 200:
            self._refused(found)
        chars = sum(len(message.content) for message in request.messages)
        try:
            return read_completion(
                found["body"], prompt_chars=chars, keep_reasoning=settings.keep_reasoning
            )
        except TryFailed:
            self.written(request.key)  # as nothing
            raise

    def read(self, body: str) -> Answer | None:
        """The answer in a body that was left by the courier of another driver."""
        try:
            return read_completion(
                body, prompt_chars=0, keep_reasoning=self._settings.keep_reasoning
            )
        except TryFailed:
            return None

    def _refused(self, found: Mapping[str, Any]) -> NoReturn:
        status, body = found["status"], found["body"]
        what = f"status {status}: {body[:_SHOWN_CHARS]}"
        where = self._settings.base_url or "the OpenAI API"
        if "insufficient_quota" in body:
            raise InfrastructureError(
                f"synthesize.teachers.{self._name}: {where} says that its quota is used up: what "
                "was answered is kept; mend this, and go on with --resume"
            )
        refuse_status(self._name, where, status, body, self._key_variable)
        if status in OVERLOADED:
            pause_s = retry_after_s(found["headers"], time.time())
            raise TryFailed(what, is_overload=True, retry_after_s=pause_s)
        if status in PASSING:
            raise TryFailed(what)
        raise RequestFailed(f"teacher {self._name} refused it with {what}")

    def written(self, key: str) -> None:
        self._couriers.written(key)

    async def close(self) -> None:
        await self._couriers.close()


def chat_body(settings: Teacher, request: TeacherRequest) -> dict[str, Any]:
    """The body of a chat completion that asks for one trace."""
    body = {
        "model": settings.model,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        "temperature": request.temperature,
        "max_tokens": request.max_new_tokens,
        **settings.parameters,
    }
    # A service that knows another name for a parameter says so; null takes ours out.
    return {name: value for name, value in body.items() if value is not None}


def read_completion(body: str, *, prompt_chars: int, keep_reasoning: bool) -> Answer:
    """The first choice of a chat completion, since one was asked for; without a count of tokens
    the usage is estimated from the characters.

    Raises:
        TryFailed: it is no completion, or an empty one.
    """
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        message = choice["message"]
        text = message["content"]
        if not isinstance(text, str):
            raise TypeError("content is no text")
        reasoning = message.get("reasoning_content") or message.get("reasoning")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise TryFailed(f"the answer is no chat completion: {error!r}") from None
    if keep_reasoning and isinstance(reasoning, str):
        text = f"{reasoning.strip()}\n</think>\n\n{text}"
    usage = _usage(completion.get("usage"))
    return Answer(
        text,
        choice.get("finish_reason") == "length",
        usage or estimated_usage(prompt_chars, text),
        usage is None,
    )


def _usage(found: Any) -> Usage | None:
    try:
        details = found.get("prompt_tokens_details") or {}
        cached = int(details.get("cached_tokens") or 0)
        return Usage(int(found["prompt_tokens"]), cached, int(found["completion_tokens"]))
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def estimated_usage(prompt_chars: int, text: str) -> Usage:
    return Usage(round(prompt_chars / _CHARS_PER_TOKEN), 0, round(len(text) / _CHARS_PER_TOKEN))


def retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """How long the service asks to be left alone: in seconds, milliseconds or as a date."""
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        with suppress(KeyError, ValueError):
            return max(0.0, float(headers[name]) * unit_s)
    with suppress(KeyError, ValueError):
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - now_s)
    return None


def refuse_status(name: str, where: str, status: int, text: str, key_variable: str | None) -> None:
    """Raises ConfigurationError for what no further request will mend."""
    if status in (401, 403):
        raise ConfigurationError(
            f"synthesize.teachers.{name}: {where} answers {status}: it does not take the key of "
            f"{f'the variable {key_variable}' if key_variable else 'this teacher, which has none'}:"
            f" set {'another one' if key_variable else 'api_key_env to the name of a variable'}"
        )
    if status == 404:
        raise ConfigurationError(
            f"synthesize.teachers.{name}: {where} answers 404: {text[:_SHOWN_CHARS]}: correct "
            "model or base_url"
        )


def check_model(name: str, where: str, model: str | None, models: list[str]) -> None:
    """Raises ConfigurationError if the service has models, but not this one."""
    if not models or model in models:
        return
    near = get_close_matches(str(model), models, n=3, cutoff=0.4) or sorted(models)[:5]
    raise ConfigurationError(
        f"synthesize.teachers.{name}.model: {where} does not know {model}: take one that it has, "
        f"e.g. {', '.join(near)}"
    )


def is_loopback(base_url: str | None) -> bool:
    host = urlsplit(base_url or "").hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
