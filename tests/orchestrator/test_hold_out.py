"""Which traces are held out of distillation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judging.errors import DataError
from learning.windows import TrainSample
from orchestrator.material import Demonstration
from orchestrator.phases import hold_out


def demonstrations(uids) -> list[Demonstration]:
    ids = np.arange(3, dtype=np.int32)
    return [Demonstration(uid, TrainSample(ids, ids + number)) for number, uid in enumerate(uids)]


@given(st.lists(st.integers(0, 30), min_size=5), st.floats(0, 0.8), st.integers(0, 5))
def test_no_pair_is_both_trained_on_and_held_out(numbers, fraction, seed):
    traces = demonstrations([f"pair{number % 7}" for number in [*range(7), *numbers]])
    kept, held_out = hold_out(traces, fraction, seed)
    sides = [{trace.pair_uid for trace in side} for side in (kept, held_out)]
    assert not sides[0] & sides[1]
    assert [trace for trace in traces if trace in (*kept, *held_out)] == traces
    assert [trace for trace in traces if trace in kept] == list(kept)
    assert len(sides[1]) == (max(1, round(7 * fraction)) if fraction else 0)


def test_the_pairs_held_out_are_the_seeds_whatever_their_order():
    traces = demonstrations([f"pair{number}" for number in range(40)])
    held_out = [
        {trace.pair_uid for trace in hold_out(given, 0.2, seed)[1]}
        for given, seed in ((traces, 1), (traces[::-1], 1), (traces, 2))
    ]
    assert held_out[0] == held_out[1] != held_out[2]


def test_a_fraction_that_leaves_nothing_to_train_on_is_refused():
    with pytest.raises(DataError, match=r"distill.validation_fraction \(0.1\) leaves none of 1"):
        hold_out(demonstrations(["pair", "pair"]), 0.1, seed=1)
