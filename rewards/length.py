"""`builtin:overlong`: a judgment that nears the limit of its length costs."""

from __future__ import annotations

from rewards.protocol import RewardRequest, RewardResult, RewardSpec
from rewards.pure import PureReward


class Overlong(PureReward):
    """DAPO's soft overlong punishment (arXiv 2503.14476, equation 13), from -1 to 0.

    0 up to the margin, then falling on a straight line to -1 at `rollout.max_new_tokens`.
    """

    def __init__(self, *, margin: float = 0.2) -> None:
        """`margin` is the share of the limit over which the score falls."""
        if not 0 < margin <= 1:
            raise ValueError(f"margin must be above 0 and at most 1, not {margin:g}")
        self._margin = margin

    def spec(self) -> RewardSpec:
        return RewardSpec("overlong", version=f"1-{self._margin:g}", range=(-1.0, 0.0))

    def score_one(self, request: RewardRequest) -> RewardResult:
        limit, tokens = request.metadata["max_new_tokens"], request.metadata["response_tokens"]
        assert isinstance(limit, int)
        assert isinstance(tokens, int)
        margin = self._margin * limit
        over = tokens - (limit - margin)
        return RewardResult(request.id, score=-min(1.0, max(0.0, over / margin)) or 0.0)
