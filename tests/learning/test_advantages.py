"""Group-relative advantages: what a sample is worth beside its group."""

from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.advantages import group_advantages, has_zero_variance, standard_deviation

SCORES = st.lists(st.one_of(st.none(), st.floats(-100, 100)), max_size=16)


def known(values):
    return [value for value in values if value is not None]


@given(SCORES, st.booleans())
def test_advantages_have_mean_zero_and_keep_the_places_of_failed_rewards(scores, normalize_std):
    advantages = group_advantages(scores, normalize_std=normalize_std)
    assert [value is None for value in advantages] == [score is None for score in scores]
    if known(advantages):
        assert fmean(known(advantages)) == pytest.approx(0.0, abs=1e-6)


@given(SCORES.filter(lambda scores: len(known(scores)) > 1))
def test_normalized_advantages_have_unit_spread_unless_the_scores_agree(scores):
    advantages = known(group_advantages(scores))
    expected = 0.0 if has_zero_variance(scores) else 1.0
    assert stdev(advantages) == pytest.approx(expected, abs=1e-6)


@given(SCORES)
def test_a_better_score_never_has_the_lower_advantage(scores):
    pairs = zip(scores, group_advantages(scores), strict=True)
    ordered = sorted(pair for pair in pairs if pair[0] is not None)
    values = [advantage for _, advantage in ordered]
    assert values == sorted(values)


@given(SCORES.filter(lambda scores: not has_zero_variance(scores)))
def test_without_normalization_the_advantage_is_the_distance_to_the_mean(scores):
    mean = fmean(known(scores))
    for score, advantage in zip(scores, group_advantages(scores, normalize_std=False), strict=True):
        if score is not None:
            assert advantage == pytest.approx(score - mean, abs=1e-9)


def test_a_group_of_verdicts():
    # Three of four right: mean 0.5, and sqrt((3 * 0.25 + 2.25) / 3) = 1 as the spread.
    assert group_advantages([1.0, 1.0, 1.0, -1.0]) == pytest.approx([0.5, 0.5, 0.5, -1.5])


def test_a_failed_reward_changes_nothing_for_the_others():
    with_failure = group_advantages([1.0, None, -1.0, 1.0])
    assert known(with_failure) == group_advantages([1.0, -1.0, 1.0])


@pytest.mark.parametrize(
    "scores", [[], [None, None], [0.3], [None, 0.3], [1.0] * 7, [0.1 + 0.2, 0.3]]
)
def test_groups_that_teach_nothing(scores):
    assert has_zero_variance(scores)
    assert all(value in (None, 0.0) for value in group_advantages(scores))


def test_a_group_that_differs_teaches():
    assert not has_zero_variance([1.0, None, -1.0])


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_standard_deviation_is_the_sample_one(values):
    assert standard_deviation(values) == pytest.approx(stdev(values), abs=1e-9)


def test_standard_deviation_of_one_value_is_zero():
    assert standard_deviation([3.0]) == 0.0
