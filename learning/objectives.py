"""The losses: supervised on traces or on a teacher's probabilities, and the policy objective.

All are means over all completion tokens of an optimizer window, on all ranks and micro-batches
together: each micro-batch contributes its sum divided by the window's total.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from learning.openrlhf_import import PolicyLoss, SFTLoss, compute_approx_kl
from learning.packing import MicroBatch
from learning.settings import GrpoSettings, LogitSettings
from learning.windows import Window

# Sums over a micro-batch's tokens, to be divided by the window's totals.
Sums = dict[str, torch.Tensor]

_LEAST_REST = 1e-6  # of the student's probability beyond the top k


def distill_loss(
    logprobs: torch.Tensor, batch: MicroBatch, window: Window, ranks: int
) -> torch.Tensor:
    """Negative log-likelihood of the completion, this micro-batch's part of the token mean.

    Scaled by `ranks`, since DeepSpeed averages gradients over them.
    """
    return SFTLoss()(logprobs, batch.mask, dp_size=ranks, batch_num_tokens=window.total_tokens)


def distill_topk_loss(
    logprobs: torch.Tensor,  # [S, C, 1 + k] of the student: the completion's token, the teacher's
    batch: MicroBatch,
    window: Window,
    ranks: int,
    settings: LogitSettings,
) -> tuple[torch.Tensor, Sums]:
    """Divergence of student from teacher, mixed with the negative log-likelihood, as `distill_loss`
    (Hinton et al., 1503.02531, section 2, at temperature 1).

    Of the teacher the top k probabilities are known. That the rest is neither nothing nor known is
    what makes plain top-k estimates biased (Anshumann et al., 2503.16870): as one bucket it keeps
    the student from putting all of its own into the top k.
    """
    if batch.teacher_logprobs is None:  # a filler, which weighs nothing
        nothing = distill_loss(logprobs, batch, window, ranks)
        return nothing, {"teacher_kl": nothing.detach()}
    nll = distill_loss(logprobs[..., 0], batch, window, ranks)
    kl = topk_divergence(batch.teacher_logprobs, logprobs[..., 1:], tail=settings.tail)
    kl_sum = (kl * batch.mask).sum()
    loss = settings.weight * kl_sum / window.total_tokens * ranks + (1 - settings.weight) * nll
    return loss, {"teacher_kl": kl_sum.detach()}


def topk_divergence(
    teacher: torch.Tensor,  # [..., k] log-probabilities, -inf: no such token
    student: torch.Tensor,  # [..., k] of the same tokens
    *,
    tail: Literal["bucket", "renormalize"],
) -> torch.Tensor:
    """KL(teacher || student) in nats, [...]."""
    if tail == "renormalize":
        teacher = teacher.log_softmax(dim=-1)
    share = teacher.exp()
    is_known = share > 0
    known = torch.where(is_known, share * (teacher - student), 0.0).sum(dim=-1)
    if tail == "renormalize":
        return known
    rest = (1 - share.sum(dim=-1)).clamp(min=0)
    student_known = student.masked_fill(~is_known, -torch.inf).logsumexp(dim=-1)
    # Below what fp32 can tell from 0 the student's rest neither counts more nor has a gradient.
    student_rest = -torch.expm1(student_known.clamp(max=-_LEAST_REST))
    return known + torch.special.xlogy(rest, rest) - rest * student_rest.log()


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """GRPO's objective (2402.03300, eq. 3) with RM-R1's values as defaults, and its switches."""

    settings: GrpoSettings

    def loss(
        self,
        logprobs: torch.Tensor,  # [S, C] of the policy being trained
        old_logprobs: torch.Tensor,  # [S, C] of the policy at the start of the step
        reference_logprobs: torch.Tensor | None,  # [S, C]; None when kl_coef is 0
        batch: MicroBatch,
        window: Window,
        ranks: int,
    ) -> tuple[torch.Tensor, Sums]:
        """This micro-batch's part of the loss, and sums for the metrics."""
        policy_loss, *_ = self._clipped()(
            logprobs,
            old_logprobs,
            batch.advantages,
            batch.mask,
            batch.rollout_logprobs,
            dp_size=ranks,
            batch_num_tokens=window.total_tokens,
            global_batch_size=window.total_sequences,
        )
        loss = policy_loss
        sums = self._sums(logprobs, old_logprobs, batch)
        if reference_logprobs is not None:
            kl = compute_approx_kl(
                logprobs, reference_logprobs, kl_estimator=self.settings.kl_estimator
            )
            kl_sum = (kl * batch.mask).sum()
            loss = loss + self.settings.kl_coef * kl_sum / window.total_tokens * ranks
            sums["kl"] = kl_sum.detach()
        return loss, sums

    def _clipped(self) -> PolicyLoss:
        cap = self.settings.importance_cap
        correction = (
            {}
            if cap is None
            else {
                "is_correction_level": "token",
                "is_correction_mode": "clip",
                "is_correction_threshold": [0.0, cap],
            }
        )
        return PolicyLoss(
            clip_eps_low=self.settings.clip_low,
            clip_eps_high=self.settings.clip_high,
            policy_loss_type="gspo" if self.settings.ratio == "sequence" else "ppo",
            **correction,
        )

    def _sums(self, logprobs: torch.Tensor, old_logprobs: torch.Tensor, batch: MicroBatch) -> Sums:
        log_ratio = (logprobs - old_logprobs).detach()
        if self.settings.ratio == "sequence":
            lengths = batch.mask.sum(dim=-1, keepdim=True).clamp(min=1)
            log_ratio = (log_ratio * batch.mask).sum(dim=-1, keepdim=True) / lengths
        ratio = log_ratio.exp()
        low, high = 1 - self.settings.clip_low, 1 + self.settings.clip_high
        clipped = torch.where(batch.advantages > 0, ratio > high, ratio < low)
        return {
            "clip_fraction": (clipped * batch.mask).sum(),
            "entropy": -(logprobs.detach() * batch.mask).sum(),
        }
