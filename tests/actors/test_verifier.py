"""The verifier: every text gets one typed outcome, in order, and none is an error."""

import numpy as np
import pytest

from actors.verifier import Verifier
from judging.records import (
    FinishReason,
    Message,
    PreferencePair,
    Presentation,
    Reason,
    Rollout,
    pair_uid,
)

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


async def score(*rollouts: Rollout, shown: Presentation = SHOWN, strict_tail: bool = False):
    return await Verifier(strict_tail=strict_tail).score(shown, rollouts)


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
    (scored,) = await score(rollout(text, finish=finish))
    assert (scored.trace.verdict.letter, scored.trace.verdict.reason) == (None, reason)
    assert (scored.result.status, scored.result.score) == ("ok", -1.0)
    assert scored.result.info == {"reason": reason.value}


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
    (scored,) = await score(rollout(text), shown=shown)
    assert scored.result.score == expected


async def test_a_verdict_before_the_cut_counts():
    (scored,) = await score(rollout(RIGHT + " and also", finish=FinishReason.LENGTH))
    assert scored.result.score == 1.0


async def test_outcomes_come_in_the_order_of_the_rollouts_over_many_batches():
    count = 150  # more than one call of the reward takes
    rollouts = [rollout(RIGHT if number % 3 else WRONG, number) for number in range(count)]
    scored = await score(*rollouts)
    assert [outcome.result.score for outcome in scored] == [
        1.0 if number % 3 else -1.0 for number in range(count)
    ]
    assert [outcome.result.id for outcome in scored] == [f"{SHOWN.uid}#{n}" for n in range(count)]


async def test_no_rollouts_give_no_outcomes():
    assert await score() == []


async def test_strict_tail_reads_the_last_80_characters():
    text = WRONG + " " * 60 + RIGHT
    (lenient,) = await score(rollout(text))
    (strict,) = await score(rollout(text), strict_tail=True)
    assert lenient.trace.verdict.reason is Reason.CONFLICTING
    assert (strict.trace.verdict.letter, strict.result.score) == ("A", 1.0)
