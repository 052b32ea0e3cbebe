"""How far the policy that the learners start a step from is from the one that sampled.

Of the ratio r = pi_learner / pi_engine of each sampled token. What is kept of the tokens can be
summed over micro-batches and ranks, so that no token needs to be gathered.
"""

from __future__ import annotations

import math

import torch

PERCENTILES = (1, 50, 99)
# Bins of equal width in asinh(log r / 1e-6), since log r spans many orders of magnitude on either
# side of 0. Their number is odd: the middle one stands for r = 1.
_SCALE = 1e-6
_BINS = 2047
_WIDTH = 2 * math.asinh(1e3 / _SCALE) / _BINS
# A percentile of log r is wrong by at most this share of sqrt((log r)^2 + 1e-12), while
# |log r| < 1000.
PERCENTILE_ERROR = 0.011


class Mismatch:
    """Life: construct, `add` micro-batches; sum `sums` and maximize `extremes` over the ranks."""

    def __init__(self, cap: float | None, device: torch.device) -> None:
        self._cap = cap
        # float64 counts without loss what float32 would not: more than 16 million tokens.
        self.sums = torch.zeros(3 + _BINS, dtype=torch.float64, device=device)
        self.extremes = torch.full((2,), -math.inf, dtype=torch.float64, device=device)

    def add(self, learner: torch.Tensor, engine: torch.Tensor, mask: torch.Tensor) -> None:
        """Takes in log-probabilities (nats) of sampled tokens, all [S, C]; `mask` is 1 for those.

        Where one is not finite, k3_kl is not either, and so is refused as a measurement.
        """
        log_ratio = (learner.detach().double() - engine.double())[mask.bool()]
        if log_ratio.numel() == 0:
            return
        above = log_ratio > (math.inf if self._cap is None else math.log(self._cap))
        k3 = log_ratio.expm1() - log_ratio
        self.sums[:3] += torch.stack([k3.sum(), log_ratio.abs().sum(), above.sum()])
        places = (torch.asinh(log_ratio / _SCALE) / _WIDTH).nan_to_num(0.0).round()
        bins = (places + _BINS // 2).clamp(0, _BINS - 1).long()
        self.sums[3:] += torch.bincount(bins, minlength=_BINS)
        ends = torch.stack([log_ratio.max(), -log_ratio.min()])
        self.extremes = torch.maximum(self.extremes, ends)

    def metrics(self) -> dict[str, float]:
        """Over all tokens taken in.

        Returns:
            logprob_gap, the mean of |log r|; mismatch/k3_kl, the mean of r - 1 - log r, which
            estimates KL(engine || learner) (Schulman, "Approximating KL Divergence", 2020), both in
            nats a token; mismatch/ratio_min, _p01, _p50, _p99, _max; mismatch/capped, the share of
            tokens with r above the cap, if there is one.
        """
        counts = self.sums[3:]
        tokens = counts.sum()
        k3, gap, capped = (self.sums[:3] / tokens).tolist()
        low, high = -self.extremes[1], self.extremes[0]
        ratios = {"min": low, "max": high}
        for percent in PERCENTILES:
            rank = torch.ceil(tokens * percent / 100)
            place = torch.searchsorted(counts.cumsum(0), rank) - _BINS // 2
            middle = torch.sinh(place * _WIDTH) * _SCALE
            ratios[f"p{percent:02}"] = middle.clamp(low, high)
        result = {"logprob_gap": gap, "mismatch/k3_kl": k3}
        result |= {f"mismatch/ratio_{name}": log.exp().item() for name, log in ratios.items()}
        return result if self._cap is None else result | {"mismatch/capped": capped}
