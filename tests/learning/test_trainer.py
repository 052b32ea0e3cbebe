"""The trainer on real DeepSpeed ranks: what must not depend on how the work is split."""

import json
import math

import pytest
import torch
from trainer_ranks import BASE, PROCESSES, Case, run

from actors.environment import learner_environment
from learning.mismatch import PERCENTILE_ERROR
from learning.settings import LearnerSettings

pytestmark = pytest.mark.integration

FP32 = [
    Case(world=1, zero_stage=0, packing=False),
    Case(world=1, zero_stage=1, micro_batch_tokens=100),
    Case(world=1, zero_stage=2, packing=False, micro_batch_tokens=60),
    Case(world=1, zero_stage=3, micro_batch_tokens=60, offload_optimizer=True),
    Case(world=1, zero_stage=0, gradient_checkpointing=True),
    Case(world=2, zero_stage=0, micro_batch_tokens=100),
    Case(world=2, zero_stage=1),
    Case(world=2, zero_stage=2, packing=False, micro_batch_tokens=60),
    Case(world=2, zero_stage=3, packing=False),
    Case(world=2, zero_stage=3, micro_batch_tokens=24, gradient_checkpointing=True),
]
BF16 = [
    Case(world=1, zero_stage=0, dtype="bf16"),
    Case(world=2, zero_stage=1, dtype="bf16"),
    Case(world=2, zero_stage=2, dtype="bf16", packing=False),
    Case(world=2, zero_stage=3, dtype="bf16", micro_batch_tokens=100),
]
UNTIED = [Case(world=1, zero_stage=2, tied=False), Case(world=2, zero_stage=3, tied=False)]
CASES = [BASE, *FP32, *BF16, *UNTIED]


def for_each(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def outcomes(make_model, tmp_path_factory):
    """Runs all cases; the folder that holds each one's metrics, tensors and checkpoint."""
    from torch.multiprocessing import start_processes

    folder = tmp_path_factory.mktemp("trainer")
    models = {tied: str(make_model(tied=tied)) for tied in (True, False)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in learner_environment(LearnerSettings()).items():
            patch.setenv(name, value)
        start_processes(run, (CASES, models, folder), nprocs=PROCESSES, start_method="spawn")
    return folder


def metrics(outcomes, case, phase):
    """One dictionary a step."""
    return json.loads((outcomes / f"{case.name}.json").read_text())[phase]


def tensors(outcomes, case, name):
    from safetensors.torch import load_file

    return load_file(outcomes / case.name / f"{name}.safetensors")


def assert_same_tensors(some, others):
    assert some.keys() == others.keys()
    for name, tensor in some.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-5, atol=1e-6, msg=name)


@for_each(FP32)
@pytest.mark.parametrize("phase", ["distilled", "taught", "reinforced"])
def test_ranks_micro_batches_packing_and_zero_stages_give_the_same_step(outcomes, case, phase):
    first, *later = metrics(outcomes, case, phase)
    expected, *expected_later = metrics(outcomes, BASE, phase)
    assert first == pytest.approx(expected, rel=1e-5, abs=1e-7)
    # Rounding grows from step to step: AdamW divides small gradients by their own size.
    for step, expected_step in zip(later, expected_later, strict=True):
        assert step == pytest.approx(expected_step, rel=1e-3, abs=1e-4)


@for_each([BASE, *FP32])
def test_the_mismatch_is_that_of_the_policy_before_the_step(outcomes, case):
    """Over the tokens of both windows, though the policy has moved when it comes to the second."""
    step = metrics(outcomes, case, "reinforced")[1]
    gap = torch.tensor(metrics(outcomes, case, "gap"), dtype=torch.float64)
    expected = {
        "logprob_gap": gap.abs().mean().item(),
        "mismatch/k3_kl": (gap.expm1() - gap).mean().item(),
        "mismatch/ratio_min": gap.min().exp().item(),
        "mismatch/ratio_max": gap.max().exp().item(),
        "mismatch/capped": (gap > math.log(2)).double().mean().item(),
    }
    assert {name: step[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    median = gap.median().item()
    assert math.log(step["mismatch/ratio_p50"]) == pytest.approx(median, rel=PERCENTILE_ERROR)
    assert 0 < expected["mismatch/capped"] < 0.5


@for_each(BF16)
@pytest.mark.parametrize("phase", ["distilled", "reinforced"])
def test_bf16_is_close_to_fp32(outcomes, case, phase):
    step = metrics(outcomes, case, phase)[0]
    expected = metrics(outcomes, BASE, phase)[0]
    for name in ("loss", "grad_norm"):
        assert step[name] == pytest.approx(expected[name], rel=2e-2), name


@for_each([BASE, *FP32, *UNTIED])
def test_a_phase_begins_like_a_new_trainer_from_its_checkpoint(outcomes, case):
    """No moment of the phase before is left, and the checkpoint holds all that the policy is."""
    reinforced = metrics(outcomes, case, "reinforced")
    for step, repeated in zip(reinforced, metrics(outcomes, case, "repeated"), strict=True):
        assert step == pytest.approx(repeated, rel=1e-5, abs=1e-7)
    moved, kept = tensors(outcomes, case, "moved"), tensors(outcomes, case, "kept")
    assert any(not torch.equal(tensor, kept[name]) for name, tensor in moved.items())
    assert_same_tensors(moved, tensors(outcomes, case, "witnessed"))


@for_each(CASES)
def test_a_resumed_trainer_takes_the_next_step_bit_for_bit(outcomes, case):
    assert metrics(outcomes, case, "resumed") == metrics(outcomes, case, "distilled")[-1:]
    resumed, kept = tensors(outcomes, case, "resumed"), tensors(outcomes, case, "kept")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in resumed.items())


@for_each(CASES)
def test_a_step_on_a_teachers_numbers_is_replayed_bit_for_bit(outcomes, case):
    taught = metrics(outcomes, case, "taught")
    assert metrics(outcomes, case, "retaught") == taught[1:]
    assert all(0 < step["teacher_kl"] != step["loss"] for step in taught)
    weights, replayed = (tensors(outcomes, case, name) for name in ("taught", "retaught"))
    assert all(torch.equal(tensor, replayed[name]) for name, tensor in weights.items())


@for_each([BASE, *FP32, *BF16])
def test_the_loss_of_held_out_traces_is_that_of_a_step_on_them(outcomes, case):
    """That it leaves weights and moments as they are is shown by the resumed trainer, which has not
    been asked for it."""
    first, later, of_the_last = metrics(outcomes, case, "losses")
    steps = [step["loss"] for step in metrics(outcomes, case, "distilled")]
    assert [first, of_the_last] == pytest.approx([steps[0], steps[2]], rel=1e-6)
    assert later < first
    if case in FP32:
        expected = metrics(outcomes, BASE, "losses")
        assert [first, later] == pytest.approx(expected[:2], rel=1e-5)


@for_each(FP32)
def test_a_trainer_resumes_what_other_ranks_in_another_stage_wrote(outcomes, case):
    (step,), expected = metrics(outcomes, case, "elsewhere"), metrics(outcomes, BASE, "distilled")
    assert step == pytest.approx(expected[-1], rel=1e-5, abs=1e-7)
    assert_same_tensors(
        tensors(outcomes, case, "resumed-elsewhere"), tensors(outcomes, BASE, "kept")
    )


@for_each([BASE, *BF16, *UNTIED, FP32[-1]])
def test_a_checkpoint_is_an_ordinary_hugging_face_folder(outcomes, make_model, case):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = outcomes / case.name / "checkpoint"
    model = AutoModelForCausalLM.from_pretrained(folder)
    kept = tensors(outcomes, case, "kept")
    named = dict(model.named_parameters())
    assert named.keys() == kept.keys()
    assert all(torch.equal(parameter, kept[name]) for name, parameter in named.items())
    assert {str(parameter.dtype) for parameter in named.values()} == {
        {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[case.dtype]
    }
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (folder, make_model())]
    texts = [tokenizer("Which city?<answer>[[A]]</answer>").input_ids for tokenizer in tokenizers]
    assert texts[0] == texts[1]
    assert tokenizers[0].chat_template == tokenizers[1].chat_template


def test_gradient_checkpointing_changes_no_weight(outcomes):
    case = Case(world=1, zero_stage=0, gradient_checkpointing=True)
    assert case in FP32
    assert_same_tensors(tensors(outcomes, case, "moved"), tensors(outcomes, BASE, "moved"))
