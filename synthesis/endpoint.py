"""An endpoint that speaks OpenAI's chat completions: a service in the network, or `vllm serve`."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC
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
PASSING = (408, 409, 425)  # may be otherwise the next time, as all that is the server's fault
_NEVER = (501, 505)  # but for what it cannot do
_MOST_TOKENS = 2**40  # of one answer; more is no count
_CHARS_PER_TOKEN = 4.0  # about; where a service does not count
_CHECK_S = 30.0
_LONGEST_PAUSE_S = 3600.0  # that is waited for; a day's quota is not
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
        from openai import APIConnectionError, APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient

        where = self._settings.base_url or "the OpenAI API"
        client = AsyncOpenAI(
            base_url=self._settings.base_url,
            api_key=os.environ[self._key_variable] if self._key_variable else "none",
            max_retries=2,
            timeout=_CHECK_S,
            http_client=DefaultAsyncHttpxClient(trust_env=not is_loopback(self._settings.base_url)),
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
        except (ValueError, TypeError, AttributeError) as error:  # of the client, on what it read
            raise ConfigurationError(
                f"synthesize.teachers.{self._name}: what {where} answers to the question which "
                "models it has is not OpenAI's format: correct base_url, e.g. http://host:port/v1"
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
        if status == 402 or "insufficient_quota" in body:
            raise InfrastructureError(
                f"synthesize.teachers.{self._name}: {where} says that its quota is used up "
                f"({what}): what was answered is kept; mend this, and go on with --resume"
            )
        if 300 <= status < 400:
            raise ConfigurationError(
                f"synthesize.teachers.{self._name}: {where} answers {status} and names another "
                f"address ({found['headers'].get('location', 'none')}), where neither key nor "
                "prompts are sent: correct base_url"
            )
        if status != 403:  # which some services give to what they do not want to read
            refuse_status(self._name, where, status, body, self._key_variable)
        if status in OVERLOADED:
            pause_s = retry_after_s(found["headers"], time.time())
            if pause_s is not None and pause_s > _LONGEST_PAUSE_S:
                raise InfrastructureError(
                    f"synthesize.teachers.{self._name}: {where} asks to be left alone for "
                    f"{pause_s / 3600:,.1f} h: what was answered is kept; go on with --resume then"
                )
            raise TryFailed(what, is_overload=True, retry_after_s=pause_s)
        if status in PASSING or (status >= 500 and status not in _NEVER):
            raise TryFailed(what)
        raise RequestFailed(f"teacher {self._name} refused it with {what}")

    def written(self, key: str) -> None:
        self._couriers.written(key)

    async def close(self) -> None:
        await self._couriers.close()


def chat_body(settings: Teacher, request: TeacherRequest) -> dict[str, Any]:
    """The body of a chat completion that asks for one trace; what is null is left out."""
    # OpenAI has renamed it, and refuses both at once; what speaks like it knows the old name.
    is_new = settings.base_url is None or "max_completion_tokens" in settings.parameters
    body = {
        "model": settings.model,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        "temperature": request.temperature,
        "max_completion_tokens" if is_new else "max_tokens": request.max_new_tokens,
        **settings.parameters,
    }
    return {name: value for name, value in body.items() if value is not None}


def read_completion(body: str, *, prompt_chars: int, keep_reasoning: bool) -> Answer:
    """The first choice of a chat completion, since one was asked for; without a count of tokens
    the usage is estimated from the characters. Content that is null, of a model that refused or
    that thought until the token limit, is an answer without text: it is charged for.

    Raises:
        TryFailed: it is no completion, or one without a choice.
    """
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        message = choice["message"]
        text = "" if message["content"] is None else message["content"]
        if not isinstance(text, str):
            raise TypeError("content is no text")
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        usage = _usage(completion.get("usage"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise TryFailed(f"the answer is no chat completion: {error!r}") from None
    if keep_reasoning and isinstance(reasoning, str):
        text = f"{reasoning.strip()}\n</think>\n\n{text}"
    return Answer(
        text,
        choice.get("finish_reason") == "length",
        usage or estimated_usage(prompt_chars, text),
        usage is None,
    )


def _usage(found: Any) -> Usage | None:
    """None: the service did not count, or nothing that can be a count."""
    try:
        details = found.get("prompt_tokens_details") or {}
        cached = int(details.get("cached_tokens") or 0)
        usage = Usage(int(found["prompt_tokens"]), cached, int(found["completion_tokens"]))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    is_count = 0 <= cached <= usage.input_tokens < _MOST_TOKENS
    return usage if is_count and 0 <= usage.output_tokens < _MOST_TOKENS else None


def estimated_usage(prompt_chars: int, text: str) -> Usage:
    return Usage(round(prompt_chars / _CHARS_PER_TOKEN), 0, round(len(text) / _CHARS_PER_TOKEN))


def retry_after_s(headers: Mapping[str, str], now_s: float) -> float | None:
    """How long the service asks to be left alone: in milliseconds, in seconds or as a date; None
    where it says nothing that can be read."""
    value = headers.get("retry-after", "")
    readings = (
        lambda: float(headers.get("retry-after-ms", "")) / 1000,
        lambda: float(value),
        lambda: _date_s(value) - now_s,
    )
    for read in readings:
        with suppress(ValueError, OverflowError):
            if math.isfinite(seconds := read()):
                return max(0.0, seconds)
    return None


def _date_s(text: str) -> float:
    date = parsedate_to_datetime(text)
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


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
            "model or base_url, which most often ends in /v1"
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
