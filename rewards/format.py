"""`builtin:format`: does the judgment keep to the grammar?"""

from __future__ import annotations

from judging.grammar import is_in_order, weighs_whole
from rewards.protocol import RewardRequest, RewardResult, RewardSpec
from rewards.pure import PureReward


class Format(PureReward):
    """1 for a judgment in RM-R1's grammar (arXiv 2505.02387, figures 2 and 3), 0 for none of it.

    Two parts weigh the same: the sections of the judgment's kind stand closed, once, and in order
    (`order`); the rubric's weights sum to 100 % (`weights`, of chat judgments alone).
    """

    def __init__(self, *, weights: bool = True) -> None:
        """Without `weights` a rubric needs none, as in the compact template's judgments."""
        self._weights = weights

    def spec(self) -> RewardSpec:
        version = "1" if self._weights else "1-no-weights"
        return RewardSpec("format", version=version, range=(0.0, 1.0))

    def score_one(self, request: RewardRequest) -> RewardResult:
        trace = request.trace
        parts = {"order": float(is_in_order(trace))}
        if self._weights and trace.kind == "chat":
            parts["weights"] = float(weighs_whole(trace.rubric))
        return RewardResult(request.id, score=sum(parts.values()) / len(parts), components=parts)
