"""The losses: supervised on traces, and the clipped policy objective with its KL term.

Both are means over all completion tokens of an optimizer window, on all ranks and micro-batches
together: each micro-batch contributes its sum divided by the window's total.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from learning.openrlhf_import import PolicyLoss, SFTLoss, compute_approx_kl
from learning.packing import MicroBatch
from learning.settings import GrpoSettings
from learning.windows import Window

# Sums over a micro-batch's tokens, to be divided by the window's totals.
Sums = dict[str, torch.Tensor]


def distill_loss(
    logprobs: torch.Tensor, batch: MicroBatch, window: Window, ranks: int
) -> torch.Tensor:
    """Negative log-likelihood of the completion, this micro-batch's part of the token mean.

    Scaled by `ranks`, since DeepSpeed averages gradients over them.
    """
    return SFTLoss()(logprobs, batch.mask, dp_size=ranks, batch_num_tokens=window.total_tokens)


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
