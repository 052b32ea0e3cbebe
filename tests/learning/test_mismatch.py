"""The mismatch of learner and engine against numpy on all tokens at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.mismatch import PERCENTILE_ERROR, PERCENTILES, Mismatch

CPU = torch.device("cpu")
CAP = 1.5
LOG_RATIOS = st.lists(
    st.one_of(
        st.floats(-30, 30),
        st.floats(-1e-4, 1e-4),
        st.builds(
            lambda sign, power: sign * 10.0**power, st.sampled_from([-1, 1]), st.floats(-9, 2)
        ),
        st.just(0.0),
    ),
    min_size=1,
    max_size=300,
)


def taken_in(log_ratios, cap: float | None = CAP) -> Mismatch:
    """Of one micro-batch, with a row's end and a row that is filler."""
    width = len(log_ratios) + 1
    learner, mask = torch.zeros(2, width, dtype=torch.float64), torch.zeros(2, width)
    learner[0, : len(log_ratios)] = torch.tensor(log_ratios, dtype=torch.float64)
    mask[0, : len(log_ratios)] = 1
    learner[mask == 0] = 5.0  # must not be seen
    mismatch = Mismatch(cap, CPU)
    mismatch.add(learner, torch.zeros(2, width), mask)
    return mismatch


@given(log_ratios=LOG_RATIOS)
def test_percentiles_are_numpys_within_the_stated_error(log_ratios):
    metrics = taken_in(log_ratios).metrics()
    for percent in PERCENTILES:
        expected = np.percentile(log_ratios, percent, method="inverted_cdf")
        found = np.log(metrics[f"mismatch/ratio_p{percent:02}"])
        error = PERCENTILE_ERROR * np.sqrt(expected**2 + 1e-12)
        assert found == pytest.approx(expected, abs=error + 1e-15, rel=0)
    names = ["min", "p01", "p50", "p99", "max"]
    ordered = [metrics[f"mismatch/ratio_{name}"] for name in names]
    assert ordered == sorted(ordered)


@given(log_ratios=LOG_RATIOS)
def test_means_shares_and_ends_are_those_of_all_tokens(log_ratios):
    metrics = taken_in(log_ratios).metrics()
    values = np.array(log_ratios)
    ratios = np.exp(values)
    assert metrics["logprob_gap"] == pytest.approx(np.abs(values).mean())
    assert metrics["mismatch/k3_kl"] == pytest.approx((np.expm1(values) - values).mean())
    assert metrics["mismatch/ratio_min"] == pytest.approx(ratios.min())
    assert metrics["mismatch/ratio_max"] == pytest.approx(ratios.max())
    assert metrics["mismatch/capped"] == (values > np.log(CAP)).mean()


@settings(max_examples=30)
@given(log_ratios=LOG_RATIOS, cut=st.floats(0, 1))
def test_parts_of_ranks_and_micro_batches_add_up(log_ratios, cut):
    middle = int(cut * len(log_ratios))
    parts = [taken_in(log_ratios[:middle]), taken_in(log_ratios[middle:])]
    both = Mismatch(CAP, CPU)
    both.sums = parts[0].sums + parts[1].sums
    both.extremes = torch.maximum(parts[0].extremes, parts[1].extremes)
    assert both.metrics() == pytest.approx(taken_in(log_ratios).metrics(), rel=1e-12)


def test_k3_estimates_the_divergence_of_learner_from_engine():
    generator = torch.Generator().manual_seed(0)
    engine, learner = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.5, 0.25, 0.25])
    sampled = torch.multinomial(engine, 200_000, replacement=True, generator=generator)[None]
    mismatch = Mismatch(None, CPU)
    mismatch.add(learner.log()[sampled], engine.log()[sampled], torch.ones(sampled.shape))
    expected = (engine * (engine / learner).log()).sum().item()
    metrics = mismatch.metrics()
    assert metrics["mismatch/k3_kl"] == pytest.approx(expected, rel=0.02)
    assert "mismatch/capped" not in metrics


def test_equal_policies_have_a_ratio_of_exactly_one():
    metrics = taken_in([0.0] * 10).metrics()
    ratios = {value for name, value in metrics.items() if "ratio" in name}
    assert ratios == {1.0}
    assert metrics["mismatch/k3_kl"] == metrics["logprob_gap"] == metrics["mismatch/capped"] == 0


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_log_probability_that_is_not_finite_is_not_hidden(broken):
    metrics = taken_in([0.1, broken, -0.2]).metrics()
    assert not np.isfinite(metrics["mismatch/k3_kl"])


def test_counts_are_exact_beyond_what_float32_can_count():
    mismatch = taken_in([0.0, 1.0])
    mismatch.sums *= 2.0**26
    mismatch.add(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1))
    assert mismatch.sums[3:].sum() == 2**27 + 1
