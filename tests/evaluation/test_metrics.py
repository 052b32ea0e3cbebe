import random

import numpy as np
import pytest

from evaluation.metrics import JudgedPair, evaluate_pairs, judged_pairs
from judging.errors import DataError
from judging.presentation import balanced_order, both_orders
from judging.records import (
    FinishReason,
    Judgment,
    Letter,
    Message,
    PreferencePair,
    Presentation,
    Rollout,
)
from judging.traces import parse_trace

PAIRS = [
    PreferencePair(f"{number:016x}", (Message("user", str(number)),), "longer answer", "short")
    for number in range(200)
]


def judge(shown: Presentation, letter: Letter | None, tokens: int = 10) -> Judgment:
    text = f"<answer>[[{letter}]]</answer>" if letter else "I cannot say."
    rollout = Rollout(
        presentation_uid=shown.uid,
        sample=0,
        seed=0,
        token_ids=np.zeros(tokens, dtype=np.int32),
        logprobs=np.zeros(tokens, dtype=np.float32),
        text=text,
        finish_reason=FinishReason.STOP,
        weight_version_min=0,
        weight_version_max=0,
    )
    return Judgment(shown, rollout, parse_trace(text))


def judge_all(decide) -> list[JudgedPair]:
    presentations = [shown for pair in PAIRS for shown in both_orders(pair)]
    return judged_pairs(judge(shown, decide(shown)) for shown in presentations)


def test_judge_that_always_says_a_scores_exactly_one_half():
    for letter, first_position_rate in (("A", 1.0), ("B", 0.0)):
        result = evaluate_pairs(judge_all(lambda _, letter=letter: letter), seed=0)
        assert result.accuracy == 0.5
        assert result.accuracy_interval == (0.5, 0.5)
        assert result.first_position_rate == first_position_rate
        assert result.flip_rate == 1.0
        assert result.consistent_accuracy == 0.0
        assert result.length_bias == 0.5
        assert result.parseable == 1.0


def test_perfect_and_always_wrong_judges():
    perfect = evaluate_pairs(judge_all(lambda shown: shown.gold), seed=0)
    assert perfect.accuracy == perfect.accuracy_first_order == perfect.consistent_accuracy == 1.0
    assert perfect.accuracy_interval == (1.0, 1.0)
    assert (perfect.flip_rate, perfect.first_position_rate) == (0.0, 0.5)
    assert (perfect.length_bias, perfect.pairs, perfect.mean_tokens) == (1.0, 200, 10.0)
    wrong = evaluate_pairs(judge_all(lambda shown: "B" if shown.gold == "A" else "A"), seed=0)
    assert wrong.accuracy == wrong.accuracy_first_order == wrong.consistent_accuracy == 0.0
    assert (wrong.flip_rate, wrong.length_bias) == (0.0, 0.0)


def test_random_judge_is_near_one_half_within_its_interval():
    coin = random.Random(0)
    judged = judge_all(lambda _: coin.choice("AB"))
    result = evaluate_pairs(judged, seed=0)
    low, high = result.accuracy_interval
    assert low < 0.5 < high
    assert low < result.accuracy < high
    assert 0.05 < high - low < 0.15
    assert result.accuracy_first_order == pytest.approx(0.5, abs=0.12)
    assert result.consistent_accuracy == pytest.approx(0.25, abs=0.1)
    assert result == evaluate_pairs(judged, seed=0)
    assert result != evaluate_pairs(judged, seed=1)


def test_single_order_accuracy_uses_the_seeded_order_of_each_pair():
    result = evaluate_pairs(judge_all(lambda _: "A"), seed=5)
    expected = [balanced_order(pair.uid, 5) == "chosen_first" for pair in PAIRS]
    assert result.accuracy_first_order == sum(expected) / len(expected)


def test_unparseable_verdicts_are_wrong_and_leave_the_shares_of_verdicts():
    def decide(shown: Presentation) -> Letter | None:
        return shown.gold if shown.order == "chosen_first" else None

    result = evaluate_pairs(judge_all(decide), seed=0)
    assert result.accuracy == result.parseable == 0.5
    assert result.consistent_accuracy == 0.0
    assert result.flip_rate is None
    assert result.first_position_rate == 1.0
    silent = evaluate_pairs(judge_all(lambda _: None), seed=0)
    assert (silent.accuracy, silent.parseable) == (0.0, 0.0)
    assert silent.flip_rate is silent.first_position_rate is silent.length_bias is None


def test_length_bias_follows_the_longer_answer_and_skips_equal_lengths():
    def judged(chosen_chars: int, verdict: Letter) -> JudgedPair:
        return JudgedPair("u", verdict, None, 4, 8, chosen_chars, 5)

    result = evaluate_pairs(
        [judged(9, "A"), judged(9, "B"), judged(2, "B"), judged(5, "A")], seed=0
    )
    assert result.length_bias == pytest.approx(2 / 3)
    assert result.mean_tokens == 6.0


def test_interval_covers_the_spread_of_resampled_pairs():
    judged = judge_all(lambda shown: shown.gold if int(shown.pair.uid, 16) % 4 else "A")
    low, high = evaluate_pairs(judged, seed=0).accuracy_interval
    right = np.array(
        [pair.is_correct("chosen_first") + pair.is_correct("rejected_first") for pair in judged]
    )
    generator = np.random.default_rng(1)
    means = [generator.choice(right, right.size).mean() / 2 for _ in range(3000)]
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)


def test_missing_or_repeated_order_is_an_error():
    first, second = both_orders(PAIRS[0])
    with pytest.raises(DataError, match="not judged with rejected_first"):
        judged_pairs([judge(first, "A")])
    with pytest.raises(DataError, match="not judged with chosen_first"):
        judged_pairs([judge(second, "A")])
    with pytest.raises(DataError, match="judged twice with chosen_first"):
        judged_pairs([judge(first, "A"), judge(second, "A"), judge(first, "B")])
    with pytest.raises(DataError, match="no judged pairs"):
        evaluate_pairs([], seed=0)
