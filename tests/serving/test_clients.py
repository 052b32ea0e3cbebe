"""The clients against the application, by their libraries' documented signatures."""

import inspect
import re
from dataclasses import replace

import httpx
import pytest
from fake_engine import FakeEngine
from in_process import InProcess
from served import QUESTION, build

from serving import clients
from serving.clients import JudgeClient, JudgeError, TrlReward, compute_score


def client(engine=None, before=(), token=None, **options):
    transport = InProcess(build(engine, token="sesame")[0], before)
    return JudgeClient("http://here", token or "sesame", transport=transport, **options)


def test_judge_rank_and_score():
    judge = client()
    assert judge.judge(QUESTION, "worth 1", "worth 2")["letter"] == "B"
    turns = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    assert judge.rank(turns, ["worth 1", "worth 2"], method="knockout")["order"] == [1, 0]
    assert judge.score(QUESTION, ["worth 3"], ["worth 1", "worth 5"], votes=3) == [0.5]


def test_what_may_pass_is_asked_again_and_what_may_not_is_said(monkeypatch):
    waits = []
    monkeypatch.setattr(clients.time, "sleep", waits.append)
    refused = [
        httpx.Response(429, headers={"retry-after": "3"}, json={"error": {"message": "full"}}),
        httpx.Response(503),
        httpx.Response(502, text="<html>"),
        httpx.Response(408),
        httpx.ConnectError("refused"),
    ]
    judge = client(before=refused)
    assert judge.judge(QUESTION, "worth 1", "worth 2")["letter"] == "B"
    assert len(waits) == 5
    assert 2.25 <= waits[0] <= 3.75
    with pytest.raises(JudgeError, match="status 422: answer_a is empty"):
        judge.judge(QUESTION, "", "worth 2")
    with pytest.raises(JudgeError, match="status 401"):
        client(token="open").judge(QUESTION, "worth 1", "worth 2")
    with pytest.raises(JudgeError, match=r"no answer within 2 s: status 429: no message"):
        client(before=[httpx.Response(429)] * 99, deadline_s=2).judge(QUESTION, "a", "b")
    with pytest.raises(JudgeError, match="status 200: no message: is this a served judge"):
        client(before=[httpx.Response(200, text="<html>")]).judge(QUESTION, "a", "b")


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("is_conversation", [False, True])
def test_trl_with_references(is_conversation):
    prompts, completions = [QUESTION] * 3, ["worth 4", "worth 9", "  "]
    if is_conversation:
        prompts, completions = list(map(user, prompts)), list(map(assistant, completions))
    reward = TrlReward(client())
    given = {
        "references": [["worth 1", "worth 5"], "worth 5", "worth 5"],
        "completion_ids": [[1]] * 3,  # which TRL passes besides the columns
        "trainer_state": object(),
    }
    assert reward(prompts=prompts, completions=completions, **given) == [0.5, 1.0, 0.0]
    assert reward.__name__ == "gavel_judge"


def test_trl_without_references_compares_a_prompts_own_completions():
    texts = ["worth 1", "worth 3", "worth 2", "worth 8", "worth 9", "", "alone", "", "worth 1"]
    prompts = [user(QUESTION)] * 3 + [user("Other?")] * 3 + [user("Third?")] * 2 + [user("Last?")]
    completions = [assistant(text) for text in texts]
    completions[3] = [  # a call of a tool comes before the answer
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "worth 99"},
        *assistant("worth 8"),
    ]
    rewards = TrlReward(client())(prompts=prompts, completions=completions)
    assert rewards == [0.0, 1.0, 0.5, 0.5, 1.0, 0.0, 1.0, 0.0, None]


def test_trl_without_references_gives_no_number_for_what_has_no_verdict():
    class SilentOn3(FakeEngine):
        def _judge(self, prompt, number):
            said = super()._judge(prompt, number)
            return replace(said, text="hm") if re.search("(worth|against) 3", said.text) else said

    def rewards(engine, *answers):
        return TrlReward(client(engine))([QUESTION] * len(answers), answers)

    assert rewards(FakeEngine(bias=("?",)), "worth 1", "worth 2", "worth 3") == [None] * 3
    some = rewards(SilentOn3(), "worth 1", "worth 2", "worth 3", "worth 4")
    assert some == [0.0, 0.5, None, 1.0]
    assert rewards(SilentOn3(), "worth 1", "worth 3", "") == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("references", [None, "worth 1"])
def test_trl_asks_at_once(references):
    engine = FakeEngine(seconds=0.05)
    prompts = [f"{QUESTION} {i // 2}" for i in range(12)]
    completions = [f"worth {2 + i % 2}" for i in range(12)]
    given = {} if references is None else {"references": [references] * 12}
    rewards = TrlReward(client(engine), concurrency=4)(prompts, completions, **given)
    assert rewards == ([0.0, 1.0] * 6 if references is None else [1.0] * 12)
    assert 1 < engine.most <= 4


def test_verl(monkeypatch):
    judge = client()
    monkeypatch.setattr(clients, "_client", lambda url: judge)
    names = list(inspect.signature(compute_score).parameters)[:4]
    assert names == ["data_source", "solution_str", "ground_truth", "extra_info"]
    row = {"data_source": "mine", "extra_info": {"question": QUESTION, "index": 3}}
    assert compute_score(solution_str="worth 3", ground_truth="worth 1", **row) == 1.0
    many = ["worth 1", "worth 5", "worth 9", "worth 10"]
    assert compute_score(solution_str="worth 6", ground_truth=many, votes=1, **row) == 0.5
    assert compute_score(solution_str="", ground_truth="worth 1", **row) == 0.0
    with pytest.raises(JudgeError, match="mine: no ground_truth"):
        compute_score(solution_str="worth 3", ground_truth=None, **row)
    with pytest.raises(JudgeError, match="mine: extra_info has no question"):
        compute_score("mine", "worth 3", "worth 1", None)


def test_verl_gives_no_number_for_a_failure(monkeypatch):
    judge = client(FakeEngine(bias=("?",)))
    monkeypatch.setattr(clients, "_client", lambda url: judge)
    row = ("mine", "worth 3", "worth 1", {"question": QUESTION})
    with pytest.raises(JudgeError, match="no judgment has a verdict"):
        compute_score(*row)
    assert compute_score(*row, undecided=0.25) == 0.25


def test_the_file_needs_nothing_of_gavel():
    source = inspect.getsource(clients)
    for package in ("judging", "serving", "actors"):
        assert f"from {package}" not in source
        assert f"import {package}" not in source
