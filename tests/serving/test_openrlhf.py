"""OpenRLHF's remote reward: the wire format, and the library's own client against a server."""

import asyncio
import json
import time
from types import SimpleNamespace

import pytest
from fake_engine import FakeEngine
from served import QUESTION, build, client_of

from serving.openrlhf import RewardRequest, read_samples
from serving.service import AT_ONCE

URL = "/v1/rewards/openrlhf"
PROMPT = f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
LABEL = json.dumps({"references": ["worth 3", "worth 7"], "conversation": QUESTION})


async def rewarded(query, prompts, labels, engine=None, path=URL, **settings):
    app, _ = build(engine, **settings)
    async with client_of(app) as client:
        body = {"query": query, "prompts": prompts, "labels": labels}
        return await client.post(path, json=body)


async def test_rewards_are_shares_against_the_references():
    query = [f"{PROMPT}worth 5<|im_end|>", f"<s>{PROMPT}worth 9</s></s>", f"{PROMPT}<|im_end|>"]
    answer = await rewarded(query, [PROMPT] * 3, [LABEL, "worth 8", LABEL])
    assert answer.json() == {
        "rewards": [0.5, 1.0, 0.0],
        "scores": [0.5, 1.0, 0.0],
        "extra_logs": {"undecided": [0.0, 0.0, 0.0]},
    }


async def test_the_judge_sees_no_endings_and_the_labels_conversation():
    class Listening(FakeEngine):
        def _judge(self, prompt, number):
            seen.append("".join(map(chr, prompt)))
            return super()._judge(prompt, number)

    seen = []
    await rewarded([f"{PROMPT}worth 5<|im_end|>\n"], [PROMPT], [LABEL], Listening())
    assert all("<|im" not in text and text.startswith(f"Q: {QUESTION}\n") for text in seen)


@pytest.mark.parametrize(
    ("query", "prompts", "labels", "said"),
    [
        (["q"], ["q", "q"], ["worth 1"], "same length"),
        ([], [], [], "same length"),
        (["other"], ["prompt"], ["worth 1"], r"query.0 does not begin with prompts.0"),
        (["q a"], ["q"], [None], "labels.0"),
        (["q a"], ["q"], [""], "labels.0"),
        (["q a"], ["q"], [{"references": []}], "labels.0.references"),
        (["q a"], ["q"], ['{"references": 3}'], "labels.0.references"),
        (["q a"], [""], ["worth 1"], "query.0: conversation.0.content is empty"),
        (["q a", "q" + "a" * 301], ["q", "q"], ["b", "b"], "query.1: answers.0 has 301 characters"),
        (["q worth 1"] * 3, ["q"] * 3, [LABEL] * 3, "6 comparisons take 12 judgments"),
    ],
)
async def test_what_has_no_reward_is_refused_with_its_place(query, prompts, labels, said):
    answer = await rewarded(query, prompts, labels, max_chars=300, max_judgments=10)
    assert answer.status_code == 422
    assert said in answer.json()["error"]["message"]


async def test_no_verdict_is_no_reward_unless_one_is_named():
    arguments = [f"{PROMPT}worth 5"], [PROMPT], [LABEL], FakeEngine(bias=("?",))
    assert (await rewarded(*arguments)).status_code == 422
    answer = await rewarded(*arguments, path=URL + "?undecided=0.5")
    assert answer.json()["rewards"] == [0.5]
    assert answer.json()["extra_logs"] == {"undecided": [1.0]}
    assert (await rewarded(*arguments, path=URL + "?undecided=nan")).status_code == 400


@pytest.mark.parametrize("label", ["{worth 3}", '{"worth 3": ' + "[" * 2000])
async def test_a_label_in_braces_may_be_a_text(label):
    answer = await rewarded(["q worth 5"], ["q"], [label])
    assert answer.json()["rewards"] == [1.0]


async def test_a_request_of_many_samples_leaves_room_for_others():
    engine = FakeEngine(seconds=0.005)
    answer = await rewarded(["q worth 5"] * 50, ["q"] * 50, [LABEL] * 50, engine)
    assert answer.json()["rewards"] == [0.5] * 50
    assert (engine.calls, engine.most) == (100, AT_ONCE)


@pytest.mark.parametrize("unit", [" ", "\n<pad>", "<|a|> "])
def test_many_endings_take_a_time_that_grows_with_their_number(unit):
    tail = unit * (200_000 // len(unit))
    began = time.perf_counter()
    answers = [
        read_samples(RewardRequest(query=[query], prompts=["q"], labels=["r"]))[0].answer
        for query in (f"qworth 5{tail}", f"q{tail}worth 5")
    ]
    assert time.perf_counter() - began < 5  # with the square of it: minutes
    assert answers == ["worth 5", f"{tail}worth 5"]


class Engine:
    """What the library's executor asks of vLLM."""

    async def generate(self, tokens, params, multi_modal_data=None):
        text = "worth 5"
        output = SimpleNamespace(
            token_ids=list(map(ord, text)), text=text, finish_reason="stop", logprobs=None
        )
        return SimpleNamespace(outputs=[output])


class Tokenizer:
    def __call__(self, *, text, add_special_tokens, return_tensors):
        import torch

        return {"input_ids": torch.tensor([[ord(c) for c in text]])}

    def decode(self, tokens, skip_special_tokens):
        return "".join(map(chr, tokens))


@pytest.mark.integration
def test_the_librarys_own_client_gets_its_reward(server_here):
    """Through its executor and into an experience, with the token in the URL."""
    from learning.openrlhf_import import flash_attn_standin

    with flash_attn_standin():
        from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator
        from openrlhf.utils.agent import SingleTurnAgentExecutor

    executor = SingleTurnAgentExecutor(f"http://:sesame@127.0.0.1:{server_here}{URL}")
    params = SimpleNamespace(max_tokens=64, logprobs=None)
    output = asyncio.run(executor.execute(PROMPT, LABEL, params, 4096, Tokenizer(), Engine()))
    assert output["reward"] == [0.5]
    make = SamplesGenerator._process_response_into_experience
    experience = make(None, output, max_len=4096)
    assert experience.rewards.flatten().tolist() == [0.5]
    assert experience.scores.flatten().tolist() == [0.5]
    assert experience.info["undecided"].flatten().tolist() == [0.0]
