import numpy as np
import pytest

from judging.records import FinishReason, Judgment, Message, PreferencePair, Presentation, Rollout
from judging.traces import parse_trace
from rewards.groups import Group
from rewards.protocol import Reward, RewardRequest, RewardResult
from rewards.verdict import VerdictReward

CONVERSATION = (Message("user", "Hi"),)


def request(response: str, gold: str = "A") -> RewardRequest:
    return RewardRequest(
        id=f"{gold}:{response[-30:]}",
        conversation=CONVERSATION,
        answer_a="a",
        answer_b="b",
        gold=gold,
        response=response,
        trace=parse_trace(response),
    )


@pytest.mark.parametrize(
    ("response", "score", "components"),
    [
        ("<answer>[[A]]</answer>", 1.0, {"correct": 1.0, "parseable": 1.0}),
        ("<answer>[[B]]</answer>", -1.0, {"correct": 0.0, "parseable": 1.0}),
        ("Both are fine.", -1.0, {"correct": 0.0, "parseable": 0.0}),
    ],
)
async def test_right_is_plus_one_and_all_else_minus_one(response, score, components):
    (result,) = await VerdictReward().score([request(response)])
    assert (result.status, result.score, result.components) == ("ok", score, components)


async def test_results_carry_the_requests_ids_and_the_reason():
    requests = [
        request("<answer>[[B]]</answer>", gold="B"),
        request("<answer>[[A]]</answer><answer>[[B]]</answer>"),
    ]
    reward: Reward = VerdictReward()
    results = await reward.score(requests)
    await reward.close()
    assert [result.id for result in results] == [item.id for item in requests]
    assert [dict(result.info) for result in results] == [{}, {"reason": "conflicting"}]
    assert [result.score for result in results] == [1.0, -1.0]


async def test_strict_tail_reads_the_last_80_characters_only():
    late = "<answer>[[A]]</answer>" + " and" * 20
    overruled = "<answer>[[B]]</answer>" + " " * 70 + "<answer>[[A]]</answer>"
    tolerant, strict = VerdictReward(), VerdictReward(strict_tail=True)
    batch = [request(late), request(overruled)]
    assert [result.score for result in await tolerant.score(batch)] == [1.0, -1.0]
    assert [result.score for result in await strict.score(batch)] == [-1.0, 1.0]
    assert tolerant.spec().name != strict.spec().name
    assert strict.spec().range == (-1.0, 1.0)


def make_judgment() -> Judgment:
    pair = PreferencePair("u", CONVERSATION, "good", "bad")
    rollout = Rollout(
        presentation_uid="u/chosen_first",
        sample=0,
        seed=0,
        token_ids=np.zeros(1, dtype=np.int32),
        logprobs=np.zeros(1, dtype=np.float32),
        text="",
        finish_reason=FinishReason.STOP,
        weight_version_min=0,
        weight_version_max=0,
    )
    return Judgment(Presentation(pair, "chosen_first"), rollout, parse_trace(""))


def test_failed_results_of_a_group_are_no_numbers():
    results = (
        RewardResult("0", score=1.0),
        RewardResult("1", status="timeout"),
        RewardResult("2", status="error", score=0.0, error="boom"),
    )
    group = Group("u/chosen_first", (make_judgment(),) * 3, results)
    assert group.scores == [1.0, None, None]


def test_group_needs_one_result_per_judgment():
    with pytest.raises(ValueError, match="1 judgments but 0 results"):
        Group("u", (make_judgment(),), ())
