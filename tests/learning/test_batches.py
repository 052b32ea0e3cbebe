"""A batch as bytes: what goes in comes out, and equal batches are equal bytes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learning.batches import dump_batches, load_batches
from learning.windows import TopTokens, TrainSample

ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5).map(
    lambda values: np.array(values, np.int32)
)


@st.composite
def batches(draw):
    with_logprobs, with_teacher = draw(st.booleans()), draw(st.booleans())
    k = draw(st.integers(1, 3))

    def sample(prompt):
        completion = draw(ids)
        logprobs = np.linspace(-3.0, 0.0, len(completion), dtype=np.float32)
        top = np.outer(logprobs, np.linspace(1, 2, k, dtype=np.float32))
        return TrainSample(
            prompt,
            completion,
            draw(st.floats(-9, 9)),
            logprobs if with_logprobs else None,
            TopTokens(top.astype(np.int32) + 7, top) if with_teacher else None,
        )

    prompts = draw(st.lists(ids, min_size=1, max_size=3))
    sizes = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    return [[sample(draw(st.sampled_from(prompts))) for _ in range(size)] for size in sizes]


def same(some: TrainSample, other: TrainSample) -> bool:
    def equal(a, b):
        return (a is None and b is None) or (a.dtype == b.dtype and np.array_equal(a, b))

    def teacher(sample, name):
        return getattr(sample.teacher, name) if sample.teacher else None

    return (
        some.advantage == other.advantage
        and all(
            equal(getattr(some, name), getattr(other, name))
            for name in ("prompt_ids", "completion_ids", "rollout_logprobs")
        )
        and all(equal(teacher(some, name), teacher(other, name)) for name in ("ids", "logprobs"))
    )


@given(batches())
def test_what_goes_in_comes_out(mini_batches):
    loaded = load_batches(dump_batches(mini_batches))
    assert [len(batch) for batch in loaded] == [len(batch) for batch in mini_batches]
    for batch, expected in zip(loaded, mini_batches, strict=True):
        assert all(same(a, b) for a, b in zip(batch, expected, strict=True))


@given(batches())
def test_equal_batches_are_equal_bytes(mini_batches):
    data = dump_batches(mini_batches)
    assert dump_batches(load_batches(data)) == data


def test_a_shared_prompt_is_held_once():
    prompt = np.arange(10_000, dtype=np.int32)
    completion = np.zeros(1, np.int32)
    one, seven = ([TrainSample(prompt, completion)] * count for count in (1, 7))
    assert len(dump_batches([seven])) < 1.02 * len(dump_batches([one]))
