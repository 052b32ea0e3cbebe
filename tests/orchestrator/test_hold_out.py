"""Which traces are held out of distillation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judging.errors import ConfigurationError, DataError
from learning.windows import TrainSample
from orchestrator.config_loading import config_from_tree
from orchestrator.facts import Facts, Machine, ModelFacts, Parts
from orchestrator.material import Demonstration
from orchestrator.phases import hold_out
from orchestrator.plan import make_plan, render_plan


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


def planned(traces: int):
    logits = {"teacher": "some/model"}
    distill = {"batch_size": 64, "validation_fraction": 0.1, "max_tokens": 128, "logits": logits}
    config = config_from_tree(
        {
            "model": {"make": {}},
            "data": {"generate": {}, "max_prompt_tokens": 96},
            "rollout": {"max_new_tokens": 64},
            "distill": distill,
            "phases": ["distill"],
        }
    )
    machine = Machine(cpus=2, memory_bytes=2**34, gpus=0, gpu_memory_bytes=None, is_cluster=False)
    return make_plan(config, Facts(Parts(traces, 0, 0), ModelFacts(None, "", None, None), machine))


def test_the_plan_does_not_count_them_among_those_trained_on():
    plan = planned(640)
    (distill,) = plan.phases
    assert (distill.pairs, distill.validation_pairs, distill.steps) == (576, 64, 9)
    assert distill.trained_tokens_per_step == 64 * 128
    assert "64 pairs for validation; its teacher is some/model" in render_plan(plan)
    with pytest.raises(
        ConfigurationError, match=r"distill.validation_fraction \(0.1\) leaves none"
    ):
        planned(1)
