"""The losses against the papers' formulas, written out sample by sample."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train_samples import random_samples, with_teacher

from learning.objectives import (
    PolicyObjective,
    distill_loss,
    distill_topk_loss,
    topk_divergence,
)
from learning.packing import build_micro_batch
from learning.settings import GrpoSettings, LogitSettings
from learning.windows import TopTokens, TrainSample, Window

pytestmark = pytest.mark.integration  # importing OpenRLHF takes longer than all of them

KL_COEF = 0.05


@dataclass(frozen=True)
class Scored:
    """A sample with what three policies say of its completion, each [completion]."""

    sample: TrainSample
    logprobs: torch.Tensor
    old: torch.Tensor
    reference: torch.Tensor


def scored_samples(count: int, seed: int = 0) -> list[Scored]:
    """Policies that differ enough for every clip and cap to be met."""
    generator = torch.Generator().manual_seed(seed)
    scored = []
    for sample in random_samples(count, seed=seed):
        rollout = torch.from_numpy(sample.rollout_logprobs)
        near = [rollout + 0.4 * torch.randn(len(rollout), generator=generator) for _ in range(3)]
        scored.append(Scored(sample, *(values.clamp(max=-0.01) for values in near)))
    return scored


def window_of(scored: list[Scored]) -> Window:
    tokens = sum(len(item.sample.completion_ids) for item in scored)
    return Window((), total_tokens=tokens, total_sequences=len(scored))


def rows(tensors: list[torch.Tensor], width: int) -> torch.Tensor:
    """[S, C], 0 behind each row's end."""
    return torch.stack([torch.nn.functional.pad(t, (0, width - len(t))) for t in tensors])


def loss_of(settings: GrpoSettings, scored: list[Scored], window: Window, ranks: int = 1):
    """The objective's loss of one micro-batch, its sums, and the log-probabilities' gradient."""
    batch = build_micro_batch([item.sample for item in scored], packing=True)
    width = batch.mask.shape[1]
    fields = [[getattr(item, name) for item in scored] for name in ("logprobs", "old", "reference")]
    logprobs, old, reference = (
        rows(field, width) if scored else torch.zeros_like(batch.mask) for field in fields
    )
    logprobs.requires_grad_(True)
    loss, sums = PolicyObjective(settings).loss(
        logprobs, old, reference if settings.kl_coef else None, batch, window, ranks
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.detach(), sums, gradient


def derived_loss(settings: GrpoSettings, scored: list[Scored]):
    """The same by the formulas: DeepSeekMath eq. 3, DAPO, TIS, GSPO eq. 5, token mean for GRPO."""
    window = window_of(scored)
    loss = torch.zeros(())
    leaves = []
    for item in scored:
        logprobs = item.logprobs.clone().requires_grad_(True)
        leaves.append(logprobs)
        objective = clipped_objective(settings, logprobs, item)
        total = window.total_sequences if settings.ratio == "sequence" else window.total_tokens
        loss = loss - objective / total
        kl = kl_estimate(settings.kl_estimator, logprobs - item.reference).sum()
        loss = loss + settings.kl_coef * kl / window.total_tokens
    return loss.detach(), torch.autograd.grad(loss, leaves)


def clipped_objective(settings, logprobs, item) -> torch.Tensor:
    log_ratio = logprobs - item.old
    ratio = (log_ratio.mean() if settings.ratio == "sequence" else log_ratio).exp()
    bounded = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    objective = torch.minimum(ratio * item.sample.advantage, bounded * item.sample.advantage)
    if settings.importance_cap is not None:
        rollout = torch.from_numpy(item.sample.rollout_logprobs)
        objective = objective * (item.old - rollout).exp().clamp(max=settings.importance_cap)
    return objective.sum()


def kl_estimate(estimator: str, difference: torch.Tensor) -> torch.Tensor:
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    return (-difference).exp() + difference - 1


SWITCHES = {
    "grpo": {},
    "no-kl": {"kl_coef": 0.0},
    "clip-higher": {"clip_high": 0.5},
    "narrow-clip": {"clip_low": 0.05, "clip_high": 0.1},
    "k1": {"kl_estimator": "k1"},
    "k2": {"kl_estimator": "k2"},
    "low-cap": {"importance_cap": 1.1},
    "no-cap": {"importance_cap": None},
    "gspo": {
        "ratio": "sequence",
        "clip_low": 0.05,
        "clip_high": 0.05,
        "importance_cap": None,
    },
}
ALL_SWITCHES = pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES)


def settings_with(changes) -> GrpoSettings:
    return GrpoSettings(**{"kl_coef": KL_COEF, **changes})


@ALL_SWITCHES
def test_loss_and_gradient_follow_the_formulas(changes):
    scored = scored_samples(12)
    loss, _, gradient = loss_of(settings_with(changes), scored, window_of(scored))
    expected, expected_gradients = derived_loss(settings_with(changes), scored)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for row, expected_gradient in zip(gradient, expected_gradients, strict=True):
        count = len(expected_gradient)
        torch.testing.assert_close(row[:count], expected_gradient, rtol=1e-4, atol=1e-7)
        assert row[count:].abs().sum() == 0


@ALL_SWITCHES
@settings(max_examples=15)
@given(cuts=st.sets(st.integers(1, 9), max_size=4), seed=st.integers(0, 50))
def test_any_split_into_micro_batches_sums_to_the_same_loss(changes, cuts, seed):
    scored = scored_samples(10, seed)
    window = window_of(scored)
    whole, whole_sums, _ = loss_of(settings_with(changes), scored, window)
    edges = [0, *sorted(cuts), len(scored)]
    parts = [
        loss_of(settings_with(changes), scored[low:high], window)
        for low, high in itertools.pairwise(edges)
    ]
    torch.testing.assert_close(sum(part[0] for part in parts), whole, rtol=1e-4, atol=1e-6)
    for name, value in whole_sums.items():
        total = sum(part[1][name] for part in parts)
        torch.testing.assert_close(total, value, rtol=1e-4, atol=1e-4)


@ALL_SWITCHES
def test_a_filler_adds_nothing(changes):
    window = window_of(scored_samples(4))
    loss, sums, gradient = loss_of(settings_with(changes), [], window)
    assert loss == 0
    assert gradient.abs().sum() == 0
    assert all(value == 0 for value in sums.values())


@ALL_SWITCHES
def test_the_loss_is_scaled_by_the_ranks_that_gradients_are_averaged_over(changes):
    scored = scored_samples(6)
    one, _, _ = loss_of(settings_with(changes), scored, window_of(scored), ranks=1)
    three, _, _ = loss_of(settings_with(changes), scored, window_of(scored), ranks=3)
    torch.testing.assert_close(three, 3 * one)


def test_the_mean_is_over_tokens_and_not_over_samples():
    """A long completion weighs more than a short one: RM-R1's and DAPO's token mean."""
    short, long = (
        Scored(
            TrainSample(item.sample.prompt_ids, ids, advantage=1.0, rollout_logprobs=values),
            *(torch.from_numpy(values) for _ in range(3)),
        )
        for item in scored_samples(1)
        for count in (1, 9)
        for ids, values in [(torch.arange(count).int().numpy(), -torch.ones(count).numpy())]
    )
    scored = [short, long]
    _, _, gradient = loss_of(GrpoSettings(kl_coef=0.0), scored, window_of(scored))
    # The ratio is 1 and so is the advantage: each of the ten tokens pulls by a tenth.
    assert gradient[0, :1].tolist() == pytest.approx([-0.1])
    assert gradient[1].tolist() == pytest.approx([-0.1] * 9)


def test_the_engines_probabilities_are_corrected_by_a_truncated_weight():
    """By hand, with a cap of 2: weights 0.5, 1, 2 (of 3) and 2 (of 8); never raised from below.

    The policy has moved by a factor of 1.1 since the step's start, for half of the tokens by 1.5,
    beyond the clip at 1.2, where nothing pulls any more.
    """
    ids = torch.arange(4).int().numpy()
    engine = torch.tensor([0.5, 0.25, 0.125, 0.0625]).log()
    old = engine + torch.tensor([0.5, 1.0, 3.0, 8.0]).log()
    sample = TrainSample(ids, ids, advantage=0.7, rollout_logprobs=engine.numpy())
    scored = [Scored(sample, old + torch.tensor([1.1, 1.5, 1.1, 1.5]).log(), old, old)]
    settings_ = GrpoSettings(kl_coef=0.0)
    assert settings_.importance_cap == 2.0
    loss, _, gradient = loss_of(settings_, scored, window_of(scored))
    assert loss.item() == pytest.approx(-0.7 * (0.5 * 1.1 + 1.2 + 2 * 1.1 + 2 * 1.2) / 4)
    expected = [-0.7 * 0.5 * 1.1 / 4, 0.0, -0.7 * 2 * 1.1 / 4, 0.0]
    assert gradient[0].tolist() == pytest.approx(expected)


def test_no_gradient_flows_through_the_weight():
    """The first window's old log-probabilities are its own forward pass: one leaf, detached."""
    (item, *_) = scored_samples(1)
    batch = build_micro_batch([item.sample], packing=True)
    leaf = item.logprobs[None].clone().requires_grad_(True)
    objective = PolicyObjective(GrpoSettings(kl_coef=0.0))
    loss, _ = objective.loss(leaf, leaf * 1.0, None, batch, window_of([item]), 1)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert gradient.abs().sum() < 1e-6  # pi/pi is 1 whatever the leaf is; the weight adds nothing


def test_metrics_count_what_they_say():
    settings_ = GrpoSettings(clip_low=0.1, clip_high=0.3)
    scored = scored_samples(12)
    _, sums, _ = loss_of(settings_, scored, window_of(scored))
    clipped = surprise = 0.0
    for item in scored:
        for logprob, old in zip(item.logprobs.tolist(), item.old.tolist(), strict=True):
            ratio = math.exp(logprob - old)
            clipped += ratio > 1.3 if item.sample.advantage > 0 else ratio < 0.9
            surprise -= logprob
    assert 0 < clipped < window_of(scored).total_tokens
    assert sums["clip_fraction"].item() == pytest.approx(clipped)
    assert sums["entropy"].item() == pytest.approx(surprise, rel=1e-5)


def test_distillation_is_the_mean_negative_logprob_of_a_completion_token():
    scored = scored_samples(5)
    window = window_of(scored)
    batch = build_micro_batch([item.sample for item in scored], packing=True)
    logprobs = rows([item.logprobs for item in scored], batch.mask.shape[1])
    expected = -sum(item.logprobs.sum() for item in scored) / window.total_tokens
    torch.testing.assert_close(distill_loss(logprobs, batch, window, ranks=1), expected)
    torch.testing.assert_close(distill_loss(logprobs, batch, window, ranks=2), 2 * expected)


# ---- a teacher's probabilities --------------------------------------------------------------

PLACES, VOCABULARY = 6, 11
TAILS = pytest.mark.parametrize("tail", ["bucket", "renormalize"])


def top_of(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities, ids) of the k likeliest."""
    return logits.log_softmax(-1).topk(k)


def dense_divergence(teacher, student, ids, tail) -> torch.Tensor:
    """By the definition, of distributions over all tokens: outcomes that are one bucket are summed
    first, or the teacher's are cut off and scaled."""
    p, q = teacher.softmax(-1), student.softmax(-1)
    is_top = torch.zeros_like(p).scatter(1, ids, 1.0)
    if tail == "renormalize":
        p = (p * is_top) / (p * is_top).sum(-1, keepdim=True)
    else:
        rest = [(x * (1 - is_top)).sum(-1, keepdim=True) for x in (p, q)]
        p, q = (torch.cat([x * is_top, r], 1) for x, r in zip((p, q), rest, strict=True))
    terms = torch.where(p > 0, p * (p.clamp(min=1e-300).log() - q.clamp(min=1e-300).log()), 0.0)
    return terms.sum(-1)


@TAILS
@pytest.mark.parametrize("k", [1, 4, VOCABULARY - 1])
def test_the_divergence_and_its_gradient_are_those_of_the_whole_distributions(tail, k):
    generator = torch.Generator().manual_seed(k)
    teacher, student = (
        2 * torch.randn(PLACES, VOCABULARY, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    student.requires_grad_(True)
    known, ids = top_of(teacher, k)
    divergence = topk_divergence(known, student.log_softmax(-1).gather(1, ids), tail=tail)
    expected = dense_divergence(teacher, student, ids, tail)
    torch.testing.assert_close(divergence, expected)
    gradients = [torch.autograd.grad(x.sum(), student)[0] for x in (divergence, expected)]
    torch.testing.assert_close(*gradients)


def test_all_tokens_known_is_the_dense_divergence():
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(PLACES, VOCABULARY, generator=generator) for _ in range(2))
    known, ids = top_of(teacher, VOCABULARY)
    scores = student.log_softmax(-1).gather(1, ids)
    dense = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    for tail in ("bucket", "renormalize"):
        divergence = topk_divergence(known, scores, tail=tail)
        torch.testing.assert_close(divergence, dense, rtol=1e-4, atol=1e-5)


def test_the_bucket_keeps_the_student_from_the_top_k_alone():
    """Where it gives the top k what the teacher gives them, nothing pulls at their sum; cut off and
    scaled, the teacher asks for all."""
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.5, 0.0]], requires_grad=True)
    known, ids = top_of(logits.detach(), 2)
    pulls = {}
    for tail in ("bucket", "renormalize"):
        divergence = topk_divergence(known, logits.log_softmax(-1).gather(1, ids), tail=tail)
        (gradient,) = torch.autograd.grad(divergence.sum(), logits)
        pulls[tail] = gradient[0, ids[0]].sum().item()
    assert pulls["bucket"] == pytest.approx(0.0, abs=1e-6)
    assert pulls["renormalize"] < -0.05


@TAILS
def test_a_sure_teacher_is_the_likelihood_of_its_tokens(tail):
    samples = [
        TrainSample(s.prompt_ids, s.completion_ids, teacher=sure_of(s.completion_ids))
        for s in random_samples(4)
    ]
    loss, sums, gradient = topk_loss(samples, LogitSettings(weight=1.0, tail=tail))
    nll, _, nll_gradient = topk_loss(samples, LogitSettings(weight=0.0, tail=tail))
    torch.testing.assert_close(loss, nll)
    total = sum(len(sample.completion_ids) for sample in samples)
    torch.testing.assert_close(sums["teacher_kl"] / total, nll)
    torch.testing.assert_close(gradient[..., 1], nll_gradient[..., 0])


def sure_of(tokens) -> TopTokens:
    return TopTokens(tokens[:, None], torch.zeros(len(tokens), 1).numpy())


def topk_loss(samples, settings: LogitSettings, ranks: int = 1):
    """Loss, sums and gradient where the student finds the completion as likely as the engine did,
    and each of the teacher's tokens too."""
    batch = build_micro_batch(samples, packing=True)
    generator = torch.Generator().manual_seed(1)
    scores = -1 - 3 * torch.rand(*batch.mask.shape, 1, generator=generator)
    k = 1 if batch.teacher_ids is None else 1 + batch.teacher_ids.shape[-1]
    leaf = (scores - torch.arange(k).clamp(max=0)).requires_grad_(True)
    tokens = sum(len(sample.completion_ids) for sample in samples) or 1
    window = Window((), total_tokens=tokens, total_sequences=len(samples))
    given = leaf if batch.teacher_ids is not None else leaf[..., 0]
    loss, sums = distill_topk_loss(given, batch, window, ranks, settings)
    return loss.detach(), sums, torch.autograd.grad(loss, leaf)[0]


def test_the_weight_mixes_divergence_and_likelihood():
    samples = [with_teacher(sample) for sample in random_samples(5)]
    parts = {w: topk_loss(samples, LogitSettings(weight=w))[0].item() for w in (0.0, 0.3, 1.0)}
    assert parts[0.3] == pytest.approx(0.3 * parts[1.0] + 0.7 * parts[0.0])
    assert parts[1.0] != pytest.approx(parts[0.0])
    (three, _, _), (one, _, _) = (topk_loss(samples, LogitSettings(), ranks) for ranks in (3, 1))
    torch.testing.assert_close(three, 3 * one)


def test_a_filler_beside_a_teacher_adds_nothing():
    loss, sums, gradient = topk_loss([], LogitSettings())
    assert loss == 0
    assert sums["teacher_kl"] == 0
    assert gradient.abs().sum() == 0


def test_rounding_of_sure_distributions_gives_no_nonsense():
    """fp32 log-probabilities of a sure teacher and a sure student sum to a little over 1."""
    sure = torch.tensor([[-1e-7, -17.0], [3e-7, -40.0], [0.0, -90.0]], requires_grad=True)
    divergence = topk_divergence(sure.detach(), sure, tail="bucket")
    (gradient,) = torch.autograd.grad(divergence.sum(), sure)
    assert divergence.abs().max() < 1e-4
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 2
