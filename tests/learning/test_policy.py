"""The policy's log-probabilities against those of the plain Hugging Face model."""

import numpy as np
import pytest
import torch
from random_qwen import random_qwen
from train_samples import random_samples, with_teacher

from learning import attention
from learning.packing import build_micro_batch
from learning.policy import Policy, load_model, recompute_activations

pytestmark = pytest.mark.integration

BOTH = pytest.mark.parametrize("packing", [True, False])
TEMPERATURES = pytest.mark.parametrize("temperature", [1.0, 0.7])


def policy(packing: bool, temperature: float = 1.0) -> Policy:
    return Policy(random_qwen(attention.NAME if packing else "sdpa"), temperature)


def plain_logprobs(model, sample, temperature: float) -> torch.Tensor:
    """What the definition says: log-softmax of the logits over the temperature, gathered."""
    completion = torch.as_tensor(sample.completion_ids).long()
    tokens = torch.cat([torch.as_tensor(sample.prompt_ids).long(), completion])
    logits = model(tokens[None]).logits[0, len(sample.prompt_ids) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, completion[:, None])[:, 0]


@BOTH
@TEMPERATURES
def test_logprobs_equal_the_gathered_log_softmax(packing, temperature):
    samples = random_samples(6)
    batch = build_micro_batch(samples, packing=packing)
    plain = random_qwen("sdpa")
    with torch.no_grad():
        scored = policy(packing, temperature)(batch)
        for row, sample in zip(scored, samples, strict=True):
            count = len(sample.completion_ids)
            expected = plain_logprobs(plain, sample, temperature)
            torch.testing.assert_close(row[:count], expected, rtol=1e-5, atol=1e-5)
            assert row[count:].abs().sum() == 0


@BOTH
@TEMPERATURES
def test_a_teachers_tokens_are_scored_by_the_same_log_softmax(packing, temperature):
    samples = [with_teacher(sample, seed=row) for row, sample in enumerate(random_samples(5))]
    plain = random_qwen("sdpa")
    model = policy(packing, temperature)
    with torch.no_grad():
        scored = model(build_micro_batch(samples, packing=packing))
        for row, sample in zip(scored, samples, strict=True):
            count = len(sample.completion_ids)
            tokens = np.concatenate([sample.prompt_ids, sample.completion_ids])
            logits = plain(torch.as_tensor(tokens).long()[None]).logits[0, -count - 1 : -1]
            expected = (logits / temperature).log_softmax(-1)
            ids = np.column_stack([sample.completion_ids, sample.teacher.ids])
            expected = expected.gather(1, torch.as_tensor(ids).long())
            torch.testing.assert_close(row[:count], expected, rtol=1e-5, atol=1e-5)
            assert row[count:].abs().sum() == 0


def test_gradients_flow_alike_packed_and_padded():
    samples = random_samples(6)
    gradients = []
    for packing in (True, False):
        model = policy(packing)
        model(build_micro_batch(samples, packing=packing)).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-4, msg=name)


@BOTH
def test_a_filler_batch_scores_zero_and_leaves_no_gradient(packing):
    model = policy(packing)
    scored = model(build_micro_batch([], packing=packing))
    scored.sum().backward()
    assert scored.tolist() == [[0.0]]
    for parameter in model.parameters():  # every one has a gradient, for the collectives
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() == 0


@pytest.mark.parametrize(("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@BOTH
def test_a_checkpoint_loads_in_the_dtype_and_attention_asked_for(
    make_model, dtype, expected, packing
):
    model = load_model(str(make_model()), dtype=dtype, packing=packing)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert model.config._attn_implementation == (attention.NAME if packing else "sdpa")


def test_a_pickled_checkpoint_is_not_loaded(make_model, tmp_path):
    source = load_model(str(make_model()), dtype="fp32", packing=False)
    source.config.save_pretrained(tmp_path)
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_model(str(tmp_path), dtype="fp32", packing=False)


def test_layers_compute_their_activations_again_for_the_backward_pass(make_model):
    batch = build_micro_batch(random_samples(3), packing=True)
    passes, gradients = [], []
    for recomputes in (False, True):
        model = load_model(str(make_model()), dtype="fp32", packing=True)
        if recomputes:
            recompute_activations(model)
        calls = []
        model.model.layers[0].self_attn.register_forward_pre_hook(lambda *_, to=calls: to.append(1))
        Policy(model, 1.0)(batch).sum().backward()
        passes.append(len(calls))
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert passes == [1, 2]
    assert all(torch.equal(*both) for both in zip(*gradients, strict=True))
