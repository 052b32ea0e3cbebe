"""How one optimizer step's samples are dealt to ranks and micro-batches."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learning.windows import TrainSample, plan_windows

BUDGET = 64
LENGTHS = st.lists(st.tuples(st.integers(1, 32), st.integers(1, 32)), min_size=1, max_size=40)
RANKS = st.integers(1, 5)


def sample(prompt: int, completion: int) -> TrainSample:
    return TrainSample(np.zeros(prompt, np.int32), np.zeros(completion, np.int32))


def plan(lengths, ranks, budget=BUDGET):
    samples = [sample(*length) for length in lengths]
    return samples, plan_windows(samples, ranks=ranks, micro_batch_tokens=budget)


@given(LENGTHS, RANKS)
def test_every_sample_is_trained_on_exactly_once(lengths, ranks):
    samples, windows = plan(lengths, ranks)
    placed = chain.from_iterable(batch for window in windows for batch in window.micro_batches)
    assert Counter(map(id, placed)) == Counter(map(id, samples))


@given(LENGTHS, RANKS)
def test_ranks_stay_in_step_and_know_the_same_totals(lengths, ranks):
    samples, windows = plan(lengths, ranks)
    assert len(windows) == ranks
    assert len({len(window.micro_batches) for window in windows}) == 1
    completion_tokens = sum(completion for _, completion in lengths)
    assert {window.total_tokens for window in windows} == {completion_tokens}
    assert {window.total_sequences for window in windows} == {len(samples)}


@given(LENGTHS, RANKS)
def test_no_micro_batch_is_over_the_budget(lengths, ranks):
    _, windows = plan(lengths, ranks)
    for batch in chain.from_iterable(window.micro_batches for window in windows):
        assert sum(sample.tokens for sample in batch) <= BUDGET


@given(LENGTHS, RANKS)
def test_only_the_end_of_a_window_is_empty(lengths, ranks):
    _, windows = plan(lengths, ranks)
    for window in windows:
        filled = [bool(batch) for batch in window.micro_batches]
        assert filled == sorted(filled, reverse=True)
    assert any(window.micro_batches[-1] for window in windows)  # no rank waits for nobody


@given(LENGTHS, RANKS)
def test_no_rank_has_much_more_to_do_than_another(lengths, ranks):
    _, windows = plan(lengths, ranks)
    loads = [
        sum(sample.tokens for sample in chain.from_iterable(window.micro_batches))
        for window in windows
    ]
    assert max(loads) - min(loads) <= max(prompt + completion for prompt, completion in lengths)


def test_a_sample_longer_than_a_micro_batch_is_refused_with_the_key_to_change():
    with pytest.raises(ValueError, match=r"65 tokens.*learner.micro_batch_tokens \(64\)"):
        plan([(33, 32)], ranks=1)


def test_a_sample_as_long_as_a_micro_batch_fits():
    _, (window,) = plan([(32, 32), (32, 32)], ranks=1)
    assert [len(batch) for batch in window.micro_batches] == [1, 1]
