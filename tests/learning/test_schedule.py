"""Learning rates over a phase."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.schedule import learning_rate
from learning.settings import OptimizerSettings

PEAK = 2e-3


def rates(total_steps, **changes):
    settings = OptimizerSettings(learning_rate=PEAK, **changes)
    return [learning_rate(step, total_steps, settings) for step in range(total_steps)]


def test_constant_is_the_peak_from_the_first_step():
    assert rates(5) == [PEAK] * 5


def test_warmup_rises_linearly_and_never_starts_at_zero():
    assert rates(10, warmup_ratio=0.4)[:5] == pytest.approx(
        [PEAK / 4, PEAK / 2, PEAK * 3 / 4, PEAK, PEAK]
    )


def test_linear_decay_ends_at_the_floor():
    assert rates(5, schedule="linear", min_lr_ratio=0.2) == pytest.approx(
        [PEAK, PEAK * 0.8, PEAK * 0.6, PEAK * 0.4, PEAK * 0.2]
    )


def test_cosine_decay_is_halfway_in_the_middle():
    values = rates(5, schedule="cosine", min_lr_ratio=0.1)
    assert values[0] == pytest.approx(PEAK)
    assert values[2] == pytest.approx(PEAK * 0.55)
    assert values[4] == pytest.approx(PEAK * 0.1)


SETTINGS = {
    "schedule": st.sampled_from(["constant", "linear", "cosine"]),
    "warmup_ratio": st.floats(0, 1),
    "min_lr_ratio": st.floats(0, 1),
}


@given(st.integers(1, 200), st.fixed_dictionaries(SETTINGS))
def test_every_rate_is_within_zero_and_the_peak_and_falls_after_the_warmup(total_steps, changes):
    values = rates(total_steps, **changes)
    assert all(0 <= value <= PEAK * (1 + 1e-9) for value in values)
    top = values.index(max(values))
    assert values[:top] == sorted(values[:top])
    falling = values[top:]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(falling))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_step_past_the_end_keeps_the_floor(schedule):
    settings = OptimizerSettings(learning_rate=PEAK, schedule=schedule, min_lr_ratio=0.5)
    assert learning_rate(99, 10, settings) == pytest.approx(PEAK / 2)
