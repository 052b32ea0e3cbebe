"""A judge behind an OpenAI-compatible endpoint: what it is asked, and what it may answer."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from evaluation.harness import Task
from judging.errors import ConfigurationError, InfrastructureError
from judging.presentation import both_orders
from judging.prompts import load_template
from judging.records import FinishReason, Message, PreferencePair, pair_uid
from orchestrator.endpoint import Endpoint

CONVERSATION = (Message("user", "Which is the capital of Peru?"),)
PAIR = PreferencePair(pair_uid(CONVERSATION, "Lima", "Cusco"), CONVERSATION, "Lima", "Cusco")
SHOWN, _ = both_orders(PAIR)
TASK = Task(SHOWN, range(2, 4))


def completion(text="<answer>[[A]]</answer>", finish="stop"):
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return web.json_response({"choices": [choice], "usage": {"completion_tokens": 9}})


@asynccontextmanager
async def endpoint(answers, *, token=None, timeout_s=5.0):
    """A judge whose endpoint gives these answers in turn, the last ever after."""
    asked = []

    async def answer(request):
        asked.append((request.headers.get("Authorization"), await request.json()))
        made = answers[min(len(asked), len(answers)) - 1]
        return made() if callable(made) else await made

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with TestServer(app) as server:
        url = str(server.make_url("/v1/"))
        sampling = {"temperature": 0.5, "max_new_tokens": 64, "seed": 7}
        made = Endpoint(
            url, "judge-7B", load_template("instruct"), token=token, timeout_s=timeout_s, **sampling
        )
        async with made as judge:
            yield judge, asked


async def test_each_vote_is_a_request_with_its_own_seed():
    cut = lambda: completion("<rubric>", "length")  # noqa: E731
    async with endpoint([completion, cut], token="secret") as (judge, asked):
        first, second = await judge(TASK)
    assert (first.text, first.tokens, first.finish_reason) == (
        "<answer>[[A]]</answer>",
        9,
        FinishReason.STOP,
    )
    assert second.finish_reason is FinishReason.LENGTH
    assert [token for token, _ in asked] == ["Bearer secret"] * 2
    bodies = [body for _, body in asked]
    assert [body["seed"] for body in bodies] == [9, 10]
    assert {(b["model"], b["temperature"], b["max_tokens"]) for b in bodies} == {
        ("judge-7B", 0.5, 64)
    }
    assert "Lima" in json.dumps(bodies[0]["messages"])


async def test_what_may_pass_is_tried_again(monkeypatch):
    monkeypatch.setattr("orchestrator.endpoint._FIRST_PAUSE_S", 0.05)
    later = lambda: web.Response(status=429, headers={"Retry-After": "0"})  # noqa: E731
    broken = lambda: web.Response(status=503)  # noqa: E731
    async with endpoint([later, broken, completion]) as (judge, asked):
        assert len(await judge(Task(SHOWN, range(1)))) == 1
    assert len(asked) == 3


async def test_what_never_comes_ends_at_the_deadline():
    busy = lambda: web.Response(status=503)  # noqa: E731
    async with endpoint([busy], timeout_s=0.7) as (judge, _):
        with pytest.raises(InfrastructureError, match=r"no completion within 1 s .*status 503"):
            await judge(TASK)

    async def hang():
        await asyncio.sleep(60)

    async with endpoint([hang()], timeout_s=0.3) as (judge, _):
        with pytest.raises(InfrastructureError, match="no completion within 0 s"):
            await judge(TASK)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((401, "no such key"), "status 401: no such key: put a token that it takes into GAVEL_"),
        ((404, "no such model"), "status 404: no such model: name the URL up to /v1"),
        ((400, "max_tokens is too large"), "status 400: max_tokens is too large"),
    ],
)
async def test_a_refusal_says_what_to_do(answer, told):
    status, text = answer
    async with endpoint([lambda: web.Response(status=status, text=text)]) as (judge, asked):
        with pytest.raises(ConfigurationError, match=told):
            await judge(TASK)
    assert len(asked) == 1


async def test_a_prompt_that_is_too_long_is_no_answer():
    text = "This model's maximum context length is 8192 tokens"
    async with endpoint([lambda: web.Response(status=400, text=text)]) as (judge, _):
        assert await judge(TASK) is None


@pytest.mark.parametrize("answer", ["[]", '{"choices": []}', "{", '{"choices": [{}], "usage": 1}'])
async def test_what_is_no_completion_is_named(answer):
    async with endpoint([lambda: web.Response(text=answer)]) as (judge, _):
        with pytest.raises(InfrastructureError, match=r"no JSON|no chat completion"):
            await judge(TASK)


@pytest.mark.parametrize(
    ("url", "token", "told"),
    [
        ("ftp://host/v1", None, "write http"),
        ("https://me:hunter2@host/v1", None, "holds no user or password"),
        ("http://host.example/v1", "secret", "would travel in the clear"),
    ],
)
def test_addresses_that_are_refused(url, token, told):
    template = load_template("instruct")
    sampling = {"temperature": 0.0, "max_new_tokens": 1, "seed": 1, "timeout_s": 1.0}
    with pytest.raises(ConfigurationError, match=told) as caught:
        Endpoint(url, "m", template, token=token, **sampling)
    assert "hunter2" not in str(caught.value)
