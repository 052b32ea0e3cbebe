"""`builtin:verdict`, `builtin:strict_tail`: is the verdict right?"""

from __future__ import annotations

from judging.traces import parse_trace
from rewards.protocol import RewardRequest, RewardResult, RewardSpec
from rewards.pure import PureReward


class VerdictReward(PureReward):
    """+1 for the gold letter, -1 for the other one and for no clear verdict.

    RM-R1, equation 8 (arXiv 2505.02387). A judgment without a verdict is the policy's fault and
    scored as wrong; it is no failure of the reward.
    """

    def __init__(self, *, strict_tail: bool = False) -> None:
        """With `strict_tail` the verdict is read by RM-R1's rule, from the last 80 characters."""
        self._strict_tail = strict_tail

    def spec(self) -> RewardSpec:
        return RewardSpec("strict_tail" if self._strict_tail else "verdict")

    def score_one(self, request: RewardRequest) -> RewardResult:
        verdict = request.trace.verdict
        if self._strict_tail:
            verdict = parse_trace(request.response, strict_tail=True).verdict
        is_correct = verdict.letter == request.gold
        return RewardResult(
            id=request.id,
            score=1.0 if is_correct else -1.0,
            components={
                "correct": float(is_correct),
                "parseable": float(verdict.letter is not None),
            },
            info={} if verdict.reason is None else {"reason": verdict.reason.value},
        )
