"""A judge behind an OpenAI-compatible endpoint: `POST <url>/chat/completions`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from evaluation.harness import Answer, Task
from judging.errors import ConfigurationError, InfrastructureError
from judging.prompts import PromptTemplate
from judging.records import FinishReason

TOKEN_VARIABLE = "GAVEL_ENDPOINT_TOKEN"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses worth another try
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_SHOWN_CHARS = 300  # of what the endpoint says


class Endpoint:
    """Life: `async with Endpoint(...) as judge`; then `await judge(task)`."""

    def __init__(
        self,
        url: str,
        model: str,
        template: PromptTemplate,
        *,
        token: str | None,
        temperature: float,
        max_new_tokens: int,
        seed: int,
        timeout_s: float,
    ) -> None:
        """`timeout_s` is for one answer, with all tries that it takes.

        Raises:
            ConfigurationError: the URL is none of http(s), or would carry the token in the clear.
        """
        self._url = f"{_checked(url, token)}/chat/completions"
        self._model, self._template, self._seed = model, template, seed
        self._sampling = {"temperature": temperature, "max_tokens": max_new_tokens}
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {token}"} if token else {},
            follow_redirects=False,
            trust_env=False,
            timeout=None,
            limits=httpx.Limits(max_connections=None),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def __call__(self, task: Task) -> Sequence[Answer] | None:
        """One request a vote, since not every endpoint gives several answers to one.

        None if the prompt is too long for the model.

        Raises:
            ConfigurationError: the endpoint refuses the token, the model or the request's form.
            InfrastructureError: it does not answer within the deadline, or what it answers is no
                completion.
        """
        messages = [
            {"role": turn.role, "content": turn.content}
            for turn in self._template.render(task.presentation)
        ]
        body = {"model": self._model, "messages": messages, **self._sampling}
        answers: list[Answer] = []
        for vote in task.votes:
            completion = await self._complete({**body, "seed": self._seed + vote})
            if completion is None:
                return None
            answers.append(_answer(completion, self._url))
        return answers

    async def _complete(self, body: dict[str, Any]) -> Any:
        """Tries again, ever later, while it is told to come back or nobody answers."""
        deadline_s = time.monotonic() + self._timeout_s
        pause_s, last = _FIRST_PAUSE_S, "nobody answered"
        while (left_s := deadline_s - time.monotonic()) > 0:
            wait_s = pause_s
            try:
                async with asyncio.timeout(left_s):
                    response = await self._client.post(self._url, json=body)
                if response.status_code not in _MAY_PASS:
                    return _checked_completion(response, self._url)
                last = f"status {response.status_code}"
                wait_s = _retry_after_s(response) or pause_s
            except TimeoutError:
                break
            except httpx.HTTPError as error:
                last = f"{type(error).__name__}: {error}"
            await asyncio.sleep(min(wait_s, max(0.0, deadline_s - time.monotonic())))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        raise InfrastructureError(
            f"{self._url}: no completion within {self._timeout_s:.0f} s "
            f"(deadlines.generate_s); the last try: {last}"
        )


def _checked(url: str, token: str | None) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"--endpoint {url}: write http(s)://HOST[:PORT]/v1")
    if parts.username or parts.password:
        raise ConfigurationError(
            f"--endpoint: a URL holds no user or password: put the token into {TOKEN_VARIABLE}"
        )
    if token and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise ConfigurationError(
            f"--endpoint {url}: {TOKEN_VARIABLE} would travel in the clear: use https, or unset it"
        )
    return url.rstrip("/")


def _retry_after_s(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return min(float(text), _LONGEST_PAUSE_S) if text.isdecimal() else None


def _checked_completion(response: httpx.Response, url: str) -> Any:
    status, said = response.status_code, " ".join(response.text.split())[:_SHOWN_CHARS]
    if status == httpx.codes.OK:
        try:
            return response.json()
        except ValueError:
            raise InfrastructureError(f"{url}: its answer is no JSON: {said}") from None
    if status == httpx.codes.BAD_REQUEST and "context" in said and "length" in said:
        return None
    mend = {
        401: f"put a token that it takes into {TOKEN_VARIABLE}",
        403: f"put a token that it takes into {TOKEN_VARIABLE}",
        404: "name the URL up to /v1, and the model as it is called there",
    }.get(status, "see what it says")
    raise ConfigurationError(f"{url} refuses with status {status}: {said or 'nothing'}: {mend}")


def _answer(completion: Any, url: str) -> Answer:
    match completion:
        case {
            "choices": [{"message": {"content": str() | None as text}, **choice}, *_],
            "usage": {"completion_tokens": int(tokens)},
        }:
            is_cut = choice.get("finish_reason") == "length"
            return Answer(text or "", tokens, FinishReason.LENGTH if is_cut else FinishReason.STOP)
    raise InfrastructureError(f"{url}: its answer is no chat completion with choices and usage")
