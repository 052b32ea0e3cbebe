"""How one optimizer step's samples are dealt to ranks and micro-batches."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.windows import TrainSample, computed_tokens, plan_windows

BUDGET = 64
LENGTHS = st.lists(st.tuples(st.integers(1, 32), st.integers(1, 32)), min_size=1, max_size=40)
RANKS = st.integers(1, 5)


SHARING = st.booleans()


def sample(prompt: int, completion: int) -> TrainSample:
    """Prompts of one length are equal, so that many are shared."""
    return TrainSample(np.zeros(prompt, np.int32), np.zeros(completion, np.int32))


def plan(lengths, ranks, share_prompts=False, budget=BUDGET):
    samples = [sample(*length) for length in lengths]
    return samples, plan_windows(
        samples, ranks=ranks, micro_batch_tokens=budget, share_prompts=share_prompts
    )


def rank_loads(windows, share_prompts):
    return [
        sum(computed_tokens(batch, share_prompts=share_prompts) for batch in window.micro_batches)
        for window in windows
    ]


@given(LENGTHS, RANKS, SHARING)
def test_every_sample_is_trained_on_exactly_once(lengths, ranks, share_prompts):
    samples, windows = plan(lengths, ranks, share_prompts)
    placed = chain.from_iterable(batch for window in windows for batch in window.micro_batches)
    assert Counter(map(id, placed)) == Counter(map(id, samples))


@given(LENGTHS, RANKS, SHARING)
def test_ranks_stay_in_step_and_know_the_same_totals(lengths, ranks, share_prompts):
    samples, windows = plan(lengths, ranks, share_prompts)
    assert len(windows) == ranks
    assert len({len(window.micro_batches) for window in windows}) == 1
    completion_tokens = sum(completion for _, completion in lengths)
    assert {window.total_tokens for window in windows} == {completion_tokens}
    assert {window.total_sequences for window in windows} == {len(samples)}


@given(LENGTHS, RANKS, SHARING)
def test_no_micro_batch_is_over_the_budget(lengths, ranks, share_prompts):
    _, windows = plan(lengths, ranks, share_prompts)
    for batch in chain.from_iterable(window.micro_batches for window in windows):
        assert computed_tokens(batch, share_prompts=share_prompts) <= BUDGET


@given(LENGTHS, RANKS, SHARING)
def test_only_the_end_of_a_window_is_empty(lengths, ranks, share_prompts):
    _, windows = plan(lengths, ranks, share_prompts)
    for window in windows:
        filled = [bool(batch) for batch in window.micro_batches]
        assert filled == sorted(filled, reverse=True)
    assert any(window.micro_batches[-1] for window in windows)  # no rank waits for nobody


@given(LENGTHS, RANKS)
def test_no_rank_has_much_more_to_do_than_another(lengths, ranks):
    _, windows = plan(lengths, ranks)
    loads = rank_loads(windows, share_prompts=False)
    assert max(loads) - min(loads) <= max(prompt + completion for prompt, completion in lengths)


def test_a_groups_prompt_is_computed_once_and_counted_once():
    samples, (window,) = plan([(20, 4)] * 8, ranks=1, share_prompts=True)
    assert window.micro_batches == (tuple(samples),)
    assert computed_tokens(samples, share_prompts=True) == 20 + 8 * 4
    assert computed_tokens(samples, share_prompts=False) == 8 * 24


def test_a_group_too_large_for_a_micro_batch_is_cut():
    _, (window,) = plan([(32, 10)] * 7, ranks=1, share_prompts=True)
    assert [len(batch) for batch in window.micro_batches] == [3, 3, 1]


def test_ranks_share_a_lone_group():
    _, windows = plan([(10, 5)] * 8, ranks=2, share_prompts=True)
    assert max(rank_loads(windows, share_prompts=True)) < 10 + 8 * 5


@given(st.integers(4, 20), st.integers(1, 8))
def test_groups_stay_together(groups, completion):
    """Where there are enough of them for the ranks, none is computed in two places."""
    lengths = [(place + 1, completion) for place in range(groups) for _ in range(3)]
    _, windows = plan(lengths, ranks=2, share_prompts=True, budget=10_000)
    total = sum(rank_loads(windows, share_prompts=True))
    once = sum(prompt for prompt, _ in lengths) // 3 + sum(length for _, length in lengths)
    assert total == once


def test_a_sample_longer_than_a_micro_batch_is_refused_with_the_key_to_change():
    with pytest.raises(ValueError, match=r"65 tokens.*learner.micro_batch_tokens \(64\)"):
        plan([(33, 32)], ranks=1)


def test_a_sample_as_long_as_a_micro_batch_fits():
    _, (window,) = plan([(32, 32), (32, 32)], ranks=1)
    assert [len(batch) for batch in window.micro_batches] == [1, 1]
