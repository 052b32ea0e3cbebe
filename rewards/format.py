"""`builtin:format`: does the judgment keep to the grammar?"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rewards.protocol import RewardRequest, RewardResult, RewardSpec
from rewards.pure import PureReward

_ORDER: Mapping[str, tuple[str, ...]] = {
    "chat": ("rubric", "eval", "answer"),
    "reasoning": ("solution", "eval", "answer"),
    "thought": ("answer",),
}
_PERCENTAGE = re.compile(r"(\d+(?:\.\d+)?)\s*+%")
_WHOLE = 100.0
_TOLERANCE = 0.5  # percent; weights are rounded


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
        outline = tuple(name for name in trace.outline if name != "type")
        parts = {"order": float(outline == _ORDER.get(trace.kind))}
        if self._weights and trace.kind == "chat":
            total = sum(float(number) for number in _PERCENTAGE.findall(trace.rubric))
            parts["weights"] = float(abs(total - _WHOLE) <= _TOLERANCE)
        return RewardResult(request.id, score=sum(parts.values()) / len(parts), components=parts)
