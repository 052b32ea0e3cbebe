"""The tensors of a micro-batch: packed and padded must mean the same."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from train_samples import random_samples, without_rollout_logprobs

from learning.packing import build_micro_batch

BOTH = pytest.mark.parametrize("packing", [True, False])
CASES = st.tuples(st.integers(1, 8), st.integers(0, 1000))


@BOTH
@given(case=CASES)
def test_source_points_at_the_token_before_each_completion_token(packing, case):
    samples = random_samples(case[0], seed=case[1])
    batch = build_micro_batch(samples, packing=packing)
    flat = batch.input_ids.flatten()
    positions = batch.position_ids.flatten()
    for row, sample in enumerate(samples):
        count = len(sample.completion_ids)
        tokens = np.concatenate([sample.prompt_ids, sample.completion_ids])
        source = batch.source[row, :count]
        first = len(sample.prompt_ids) - 1
        assert flat[source].tolist() == tokens[first:-1].tolist()
        assert positions[source].tolist() == list(range(first, len(tokens) - 1))
        assert flat[source + 1].tolist() == sample.completion_ids.tolist()
        assert batch.labels[row, :count].tolist() == sample.completion_ids.tolist()


@given(case=CASES)
def test_packed_and_padded_agree_on_all_but_the_layout(case):
    samples = random_samples(case[0], seed=case[1])
    packed = build_micro_batch(samples, packing=True)
    padded = build_micro_batch(samples, packing=False)
    for name in ("labels", "mask", "advantages", "rollout_logprobs"):
        assert torch.equal(getattr(packed, name), getattr(padded, name)), name
    assert packed.longest == padded.longest == max(sample.tokens for sample in samples)


@BOTH
@given(case=CASES)
def test_the_mask_counts_the_completion_tokens(packing, case):
    samples = random_samples(case[0], seed=case[1])
    batch = build_micro_batch(samples, packing=packing)
    counts = [len(sample.completion_ids) for sample in samples]
    assert batch.mask.sum(dim=1).tolist() == counts
    for row, sample in enumerate(samples):
        assert batch.mask[row, : counts[row]].all()
        np.testing.assert_array_equal(
            batch.rollout_logprobs[row, : counts[row]].numpy(), sample.rollout_logprobs
        )
        assert batch.advantages[row].item() == pytest.approx(sample.advantage)


def test_packed_sequences_lie_end_to_end_without_padding():
    samples = random_samples(5)
    batch = build_micro_batch(samples, packing=True)
    lengths = [sample.tokens for sample in samples]
    assert batch.input_ids.shape == (1, sum(lengths))
    assert batch.attention_mask is None
    assert batch.sequence_starts.tolist() == [0, *np.cumsum(lengths).tolist()]
    assert batch.sequence_starts.dtype == torch.int32


def test_padded_rows_are_masked_on_the_right():
    samples = random_samples(5)
    batch = build_micro_batch(samples, packing=False)
    assert batch.sequence_starts is None
    assert batch.input_ids.shape == (5, batch.longest)
    for row, sample in enumerate(samples):
        assert batch.attention_mask[row].tolist() == [
            int(place < sample.tokens) for place in range(batch.longest)
        ]


@BOTH
def test_an_empty_micro_batch_is_a_filler_that_weighs_nothing(packing):
    batch = build_micro_batch([], packing=packing)
    assert batch.input_ids.numel() == 2
    assert batch.mask.sum() == 0


@BOTH
def test_unknown_rollout_logprobs_are_zero(packing):
    sample = without_rollout_logprobs(random_samples(1)[0])
    batch = build_micro_batch([sample], packing=packing)
    assert batch.rollout_logprobs.abs().sum() == 0
    assert batch.mask.sum() == len(sample.completion_ids)


@BOTH
def test_moving_to_a_device_keeps_every_field(packing):
    batch = build_micro_batch(random_samples(3), packing=packing)
    moved = batch.to(torch.device("meta"))
    assert moved.longest == batch.longest
    assert moved.input_ids.device.type == "meta"
    assert (moved.sequence_starts is None) is (batch.sequence_starts is None)
