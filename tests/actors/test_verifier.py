"""The verifier: every text gets one typed outcome, in order, and none is an error."""

import numpy as np
import pytest

from actors.verifier import Verifier
from judging.errors import ConfigurationError
from judging.records import (
    FinishReason,
    Message,
    PreferencePair,
    Presentation,
    Reason,
    Rollout,
    pair_uid,
)
from rewards.settings import RewardUse

CONVERSATION = (Message("user", "Which is the capital of Peru?"),)
PAIR = PreferencePair(pair_uid(CONVERSATION, "Lima", "Cusco"), CONVERSATION, "Lima", "Cusco")
SHOWN = Presentation(PAIR, "chosen_first")  # gold: A
SHOWN_SWAPPED = Presentation(PAIR, "rejected_first")  # gold: B

RIGHT, WRONG = "<answer>[[A]]</answer>", "<answer>[[B]]</answer>"


def rollout(text: str, sample: int = 0, finish: FinishReason = FinishReason.STOP) -> Rollout:
    return Rollout(
        presentation_uid=SHOWN.uid,
        sample=sample,
        seed=sample,
        token_ids=np.arange(3, dtype=np.int32),
        logprobs=np.zeros(3, dtype=np.float32),
        text=text,
        finish_reason=finish,
        weight_version_min=0,
        weight_version_max=0,
    )


VERDICT, FORMAT, CONSISTENCY, OVERLONG = (
    {name: RewardUse(uses=f"builtin:{name}")}
    for name in ("verdict", "format", "consistency", "overlong")
)


def verifier(*, strict_tail: bool = False) -> Verifier:
    return Verifier(strict_tail=strict_tail, max_new_tokens=10, allowed_hosts=())


async def score(*rollouts: Rollout, shown: Presentation = SHOWN, strict_tail: bool = False):
    """(trace, the verdict's result) of each."""
    made = verifier(strict_tail=strict_tail)
    ((*scored,),) = await made.score([(shown, rollouts)], VERDICT)
    return [(outcome.trace, outcome.results["verdict"]) for outcome in scored]


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("", FinishReason.STOP, Reason.NONE),
        ("\x00\ud800 ]]][[ </answer><answer>", FinishReason.STOP, Reason.NONE),
        (RIGHT + WRONG, FinishReason.STOP, Reason.CONFLICTING),
        ("<type>Chat</type><rubric> names the", FinishReason.LENGTH, Reason.TRUNCATED),
        ("", FinishReason.LENGTH, Reason.TRUNCATED),
    ],
    ids=["empty", "garbage", "both verdicts", "cut off", "cut off at once"],
)
async def test_a_text_without_a_verdict_is_typed_and_scored_as_wrong(text, finish, reason):
    ((trace, result),) = await score(rollout(text, finish=finish))
    assert (trace.verdict.letter, trace.verdict.reason) == (None, reason)
    assert (result.status, result.score) == ("ok", -1.0)
    assert result.info == {"reason": reason.value}


@pytest.mark.parametrize(
    ("shown", "text", "expected"),
    [
        (SHOWN, RIGHT, 1.0),
        (SHOWN, WRONG, -1.0),
        (SHOWN_SWAPPED, RIGHT, -1.0),
        (SHOWN_SWAPPED, WRONG, 1.0),
    ],
)
async def test_the_gold_letter_is_that_of_the_order_shown(shown, text, expected):
    ((_, result),) = await score(rollout(text), shown=shown)
    assert result.score == expected


async def test_a_verdict_before_the_cut_counts():
    ((_, result),) = await score(rollout(RIGHT + " and also", finish=FinishReason.LENGTH))
    assert result.score == 1.0


async def test_outcomes_come_in_the_order_of_the_rollouts_over_many_batches():
    count = 150  # more than one call of the reward takes
    rollouts = [rollout(RIGHT if number % 3 else WRONG, number) for number in range(count)]
    scored = await score(*rollouts)
    assert [result.score for _, result in scored] == [
        1.0 if number % 3 else -1.0 for number in range(count)
    ]
    assert [result.id for _, result in scored] == [f"{SHOWN.uid}#{n}" for n in range(count)]


async def test_no_rollouts_give_no_outcomes():
    assert await score() == []


async def test_strict_tail_reads_the_last_80_characters():
    text = WRONG + " " * 60 + RIGHT
    ((lenient, _),) = await score(rollout(text))
    ((strict, result),) = await score(rollout(text), strict_tail=True)
    assert lenient.verdict.reason is Reason.CONFLICTING
    assert (strict.verdict.letter, result.score) == ("A", 1.0)


async def test_both_orders_are_one_unit_in_which_each_sample_knows_its_other():
    made = verifier()
    unit = [
        (SHOWN, [rollout(RIGHT, 0), rollout(RIGHT, 1)]),
        (SHOWN_SWAPPED, [rollout(WRONG, 0), rollout(RIGHT, 1)]),  # there B is right
    ]
    scored = await made.score(unit, VERDICT | CONSISTENCY)
    assert [[s.results["consistency"].score for s in group] for group in scored] == [[1.0, 0.0]] * 2
    assert [[s.results["verdict"].score for s in g] for g in scored] == [[1, 1], [1, -1]]
    alone = await made.score(unit[:1], CONSISTENCY)
    assert [outcome.results["consistency"].status for outcome in alone[0]] == ["skipped"] * 2


async def test_rewards_come_and_go():
    made, unit = verifier(), [(SHOWN, [rollout(RIGHT)])]
    await made.attach("format", FORMAT["format"])
    ((scored,),) = await made.score(unit, VERDICT | FORMAT)  # the verdict it attaches itself
    assert list(scored.results) == ["verdict", "format"]
    await made.detach("verdict")
    ((scored,),) = await made.score(unit, FORMAT)
    assert list(scored.results) == ["format"]
    ((scored,),) = await made.score(unit, None)
    assert scored.results["verdict"].score == 1.0
    assert {name: count.scored for name, count in (await made.counts()).items()} == {"format": 2}


async def test_a_reward_that_it_lacks_and_cannot_attach_is_named():
    with pytest.raises(ConfigurationError, match="import:nowhere:Nothing"):
        await verifier().score(
            [(SHOWN, [rollout(RIGHT)])], {"mine": RewardUse(uses="import:nowhere:Nothing")}
        )


async def test_what_length_a_reward_is_told():
    ((scored,),) = await verifier().score([(SHOWN, [rollout(RIGHT)])], OVERLONG)
    assert scored.results["overlong"].score == 0.0  # 3 of 10 tokens
