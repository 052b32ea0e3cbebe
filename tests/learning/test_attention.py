"""Packed attention against transformers' own, one sequence at a time, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_qwen import random_qwen
from train_samples import VOCABULARY

from learning import attention

CLOSE = {"rtol": 1e-6, "atol": 1e-9}  # rotary angles are float32 in transformers


def packed_logits(model, sequences):
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int()
    return model(
        torch.cat(sequences)[None],
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        use_cache=False,
        cu_seq_lens_q=starts,
        cu_seq_lens_k=starts,
        max_length_q=int(lengths.max()),
        max_length_k=int(lengths.max()),
    ).logits[0]


def single_logits(model, sequences):
    return torch.cat([model(sequence[None], use_cache=False).logits[0] for sequence in sequences])


def random_sequences(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator) for length in lengths]


@pytest.fixture(scope="module")
def models():
    packed = random_qwen(attention.NAME, dtype=torch.float64)
    return packed, random_qwen("sdpa", dtype=torch.float64)


@settings(max_examples=10)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6), seed=st.integers(0, 100))
def test_forward_equals_each_sequence_on_its_own(models, lengths, seed):
    packed, plain = models
    sequences = random_sequences(lengths, seed)
    with torch.no_grad():
        torch.testing.assert_close(
            packed_logits(packed, sequences), single_logits(plain, sequences), **CLOSE
        )


def test_gradients_equal_those_of_each_sequence_on_its_own(models):
    packed, plain = models
    sequences = random_sequences([7, 1, 13, 4])
    for model, logits in ((packed, packed_logits), (plain, single_logits)):
        model.zero_grad()
        logits(model, sequences).log_softmax(-1)[:, 3].sum().backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in packed.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, **CLOSE, msg=name)


def test_a_sequence_does_not_see_its_neighbours(models):
    packed, _ = models
    first, second, other = random_sequences([9, 5, 9])
    with torch.no_grad():
        before = packed_logits(packed, [first, second])[len(first) :]
        after = packed_logits(packed, [other, second])[len(other) :]
    torch.testing.assert_close(before, after, **CLOSE)


def test_without_the_sequence_starts_it_refuses(models):
    packed, _ = models
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        packed(torch.arange(4)[None], use_cache=False)
