"""Several rewards as one score."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.mix import combine
from rewards.protocol import RewardResult
from rewards.settings import Ramp, weight_at

SCORES = st.lists(st.floats(-1, 1), min_size=1, max_size=8)


def results(*scores):
    """A number, or a status."""
    return [
        RewardResult(f"#{place}", score, error=f"{score}!")
        if isinstance(score, str)
        else RewardResult(f"#{place}", score=score)
        for place, score in enumerate(scores)
    ]


def scores_of(combined):
    return [result.score if result.status == "ok" else result.status for result in combined]


@given(scores=SCORES, weights=st.tuples(st.floats(0.1, 2), st.floats(0.1, 2)))
def test_the_sum_is_weighted(scores, weights):
    both = {"a": results(*scores), "b": results(*reversed(scores))}
    mixed = combine(both, {"a": weights[0], "b": weights[1]})
    expected = [
        weights[0] * first + weights[1] * second
        for first, second in zip(scores, reversed(scores), strict=True)
    ]
    assert scores_of(mixed) == pytest.approx(expected)
    assert [result.id for result in mixed] == [f"#{place}" for place in range(len(scores))]


def test_a_sample_without_one_of_its_rewards_has_failed():
    mixed = combine({"a": results(1.0, 1.0), "b": results("error", 0.5)}, {"a": 1.0, "b": 0.1})
    assert scores_of(mixed) == ["error", 1.05]
    assert mixed[0].error == "error!"
    assert mixed[0].components == {"a": 1.0}


def test_a_shadow_decides_nothing_and_is_recorded():
    mixed = combine({"a": results(1.0, 0.0), "b": results("timeout", 0.5)}, {"a": 1.0, "b": 0.0})
    assert scores_of(mixed) == [1.0, 0.0]
    assert mixed[0].info["errors"] == {"b": "timeout!"}
    assert mixed[1].components == {"a": 0.0, "b": 0.5}


def test_what_was_skipped_adds_nothing():
    mixed = combine(
        {"a": results(1.0, "skipped"), "b": results("skipped", "skipped")}, {"a": 1.0, "b": 0.5}
    )
    assert scores_of(mixed) == [1.0, "skipped"]


def test_each_reward_is_standardized_before_it_is_weighted():
    large, small = results(0.0, 1000.0, 0.0, 1000.0), results(0.0, 0.0, 0.01, 0.01)
    mixed = combine({"a": large, "b": small}, {"a": 1.0, "b": 1.0}, normalize="each")
    assert scores_of(mixed) == pytest.approx([-2.0, 0.0, 0.0, 2.0], abs=1e-3)
    mixed = combine({"a": results(1.0, "skipped", 1.0)}, {"a": 1.0}, normalize="each")
    assert scores_of(mixed) == [0.0, "skipped", 0.0]


def test_components_carry_the_rewards_name():
    one = RewardResult("#0", score=1.0, components={"correct": 1.0}, info={"reason": "none"})
    (mixed,) = combine({"verdict": [one]}, {"verdict": 1.0})
    assert mixed.components == {"verdict": 1.0, "verdict/correct": 1.0}
    assert mixed.info == {"verdict": {"reason": "none"}}


def test_a_ramp_ends_where_it_says():
    ramp = Ramp(start=1.0, end=0.0, until=0.5)
    assert [weight_at(ramp, x) for x in (0.0, 0.25, 0.5, 1.0)] == [1.0, 0.5, 0.0, 0.0]
    assert weight_at(0.3, 0.5) == 0.3
