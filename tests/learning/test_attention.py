"""Packed attention against transformers' own, one sequence at a time."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_qwen import random_qwen
from train_samples import random_samples, with_prompts

from learning import attention
from learning.packing import build_micro_batch
from learning.policy import Policy

pytestmark = pytest.mark.integration

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # the policy scores in float32
NAMES = [attention.NAME, attention.FLASH_NAME]
GROUPS = st.lists(st.integers(1, 4), min_size=1, max_size=4)  # samples of each prompt


@pytest.fixture(scope="module", autouse=True)
def flash_attn():
    """flash-attn's documented function, re-derived a sequence at a time."""
    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = _varlen
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "flash_attn", module)
        yield


def _varlen(
    query,
    key,
    value,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p,
    softmax_scale,
    causal,
):
    assert (causal, dropout_p) == (True, 0.0)
    heads = query.shape[1] // key.shape[1]
    outputs = []
    for q, k, v in zip(
        query.split(cu_seqlens_q.diff().tolist()),
        key.split(cu_seqlens_k.diff().tolist()),
        value.split(cu_seqlens_k.diff().tolist()),
        strict=True,
    ):
        assert len(q) <= max_seqlen_q
        assert len(k) <= max_seqlen_k
        k, v = k.repeat_interleave(heads, dim=1), v.repeat_interleave(heads, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * softmax_scale
        # "aligned to the bottom right corner": the last query sees every key
        seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(outputs)


@pytest.fixture(scope="module")
def policies():
    return {
        name: Policy(random_qwen(name, dtype=torch.float64), temperature=1.0)
        for name in ("sdpa", *NAMES)
    }


def groups_of(sizes, seed=0):
    return with_prompts(random_samples(sum(sizes), seed=seed), sizes)


def packed(policy, samples):
    batch = build_micro_batch(samples, packing=True)
    return torch.cat(
        [row[mask.bool()] for row, mask in zip(policy(batch), batch.mask, strict=True)]
    )


def one_by_one(policy, samples):
    batches = [build_micro_batch([sample], packing=False) for sample in samples]
    return torch.cat([policy(batch)[0] for batch in batches])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15)
@given(sizes=GROUPS, seed=st.integers(0, 100))
def test_shared_prompts_give_what_each_sample_gives_on_its_own(policies, name, sizes, seed):
    samples = groups_of(sizes, seed)
    with torch.no_grad():
        torch.testing.assert_close(
            packed(policies[name], samples), one_by_one(policies["sdpa"], samples), **CLOSE
        )


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_those_of_each_sample_on_its_own(policies, name):
    samples = groups_of([3, 1, 2])
    weights = torch.linspace(-1, 2, sum(len(sample.completion_ids) for sample in samples))
    for policy, logprobs in ((policies[name], packed), (policies["sdpa"], one_by_one)):
        policy.zero_grad()
        (logprobs(policy, samples) * weights).sum().backward()
    theirs = dict(policies["sdpa"].named_parameters())
    for parameter_name, parameter in policies[name].named_parameters():
        torch.testing.assert_close(
            parameter.grad, theirs[parameter_name].grad, **CLOSE, msg=parameter_name
        )


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_sees_neither_its_siblings_nor_other_prompts(policies, name):
    samples = groups_of([2, 2])
    kept = len(samples[1].completion_ids)
    changed = [*random_samples(1, seed=9), samples[1], *groups_of([2], seed=8)]
    changed = [*with_prompts(changed[:2], [2], prompt_ids=samples[1].prompt_ids), *changed[2:]]
    with torch.no_grad():
        before = packed(policies[name], samples)[len(samples[0].completion_ids) :][:kept]
        after = packed(policies[name], changed)[len(changed[0].completion_ids) :][:kept]
    torch.testing.assert_close(before, after, **CLOSE)


def test_a_shared_prompt_is_computed_once():
    samples = groups_of([3])
    batch = build_micro_batch(samples, packing=True)
    completions = sum(len(sample.completion_ids) for sample in samples)
    assert batch.input_ids.shape == (1, len(samples[0].prompt_ids) + completions)
    np.testing.assert_array_equal(
        batch.input_ids[0, : len(samples[0].prompt_ids)], samples[0].prompt_ids
    )


def test_without_the_segments_it_refuses(policies):
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        policies[attention.NAME].model(torch.arange(4)[None], use_cache=False)
