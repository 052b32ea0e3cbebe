"""The tensors of a micro-batch: packed and padded must mean the same."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from train_samples import random_samples, with_prompts, with_teacher, without_rollout_logprobs

from learning.packing import build_micro_batch

BOTH = pytest.mark.parametrize("packing", [True, False])
CASES = st.tuples(st.integers(1, 8), st.integers(0, 1000))
GROUPS = st.lists(st.integers(1, 4), min_size=1, max_size=4)  # samples of each prompt


@BOTH
@given(sizes=GROUPS, seed=st.integers(0, 1000))
def test_source_points_at_the_token_before_each_completion_token(packing, sizes, seed):
    samples = with_prompts(random_samples(sum(sizes), seed=seed), sizes)
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
        assert flat[source[1:] + 1].tolist() == sample.completion_ids[1:].tolist()
        assert batch.labels[row, :count].tolist() == sample.completion_ids.tolist()


@given(sizes=GROUPS, seed=st.integers(0, 1000))
def test_a_segments_keys_are_its_sample_up_to_its_last_query(sizes, seed):
    samples = with_prompts(random_samples(sum(sizes), seed=seed), sizes)
    batch = build_micro_batch(samples, packing=True)
    segments, row = batch.segments, batch.input_ids[0]
    queries = row.split(segments.query_starts.diff().tolist())
    keys = row if segments.key_positions is None else row[segments.key_positions]
    seen = [part.tolist() for part in keys.split(segments.key_starts.diff().tolist())]
    expected = []
    for size in sizes:
        group, samples = samples[:size], samples[size:]
        prompt = group[0].prompt_ids.tolist()
        if size > 1:
            expected.append(prompt)
        expected.extend(prompt + sample.completion_ids.tolist() for sample in group)
    assert seen == expected
    for query, key in zip(queries, seen, strict=True):
        assert key[-len(query) :] == query.tolist()
    assert segments.longest_query == max(map(len, queries))
    assert segments.longest_key == max(map(len, seen))


@given(case=CASES)
def test_packed_and_padded_agree_on_all_but_the_layout(case):
    samples = random_samples(case[0], seed=case[1])
    packed = build_micro_batch(samples, packing=True)
    padded = build_micro_batch(samples, packing=False)
    for name in ("labels", "mask", "advantages", "rollout_logprobs"):
        assert torch.equal(getattr(packed, name), getattr(padded, name)), name


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
    assert batch.segments.query_starts.tolist() == [0, *np.cumsum(lengths).tolist()]
    assert batch.segments.query_starts.dtype == torch.int32
    assert batch.segments.key_positions is None


def test_padded_rows_are_masked_on_the_right():
    samples = random_samples(5)
    batch = build_micro_batch(samples, packing=False)
    longest = max(sample.tokens for sample in samples)
    assert batch.segments is None
    assert batch.input_ids.shape == (5, longest)
    for row, sample in enumerate(samples):
        assert batch.attention_mask[row].tolist() == [
            int(place < sample.tokens) for place in range(longest)
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
def test_a_teachers_tokens_stand_beside_those_of_the_completion(packing):
    samples = [with_teacher(sample, seed=row) for row, sample in enumerate(random_samples(5))]
    batch = build_micro_batch(samples, packing=packing)
    assert batch.teacher_ids.shape == (*batch.labels.shape, 4)
    for row, sample in enumerate(samples):
        count = len(sample.completion_ids)
        assert batch.teacher_ids[row, :count].tolist() == sample.teacher.ids.tolist()
        assert batch.teacher_logprobs[row, :count].tolist() == sample.teacher.logprobs.tolist()
        assert batch.teacher_logprobs[row, count:].abs().sum() == 0
    assert build_micro_batch([], packing=packing).teacher_ids is None


@BOTH
def test_moving_to_a_device_keeps_every_field(packing):
    batch = build_micro_batch(random_samples(3), packing=packing)
    moved = batch.to(torch.device("meta"))
    assert moved.input_ids.device.type == "meta"
    if packing:
        assert moved.segments.query_starts.device.type == "meta"
        assert moved.segments.longest_key == batch.segments.longest_key
