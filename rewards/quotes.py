"""`builtin:quotes`: does the evaluation quote what the answers say?"""

from __future__ import annotations

from judging.quotations import occurs
from rewards.protocol import RewardRequest, RewardResult, RewardSpec
from rewards.pure import PureReward


class Quotes(PureReward):
    """The share of quotes that occur in the answer they are taken from.

    Blanks, case, surrounding quotation marks and an ellipsis that leaves words out do not count.
    Gavel's own rule, after RM-R1's demand to quote (arXiv 2505.02387, figure 2). A judgment without
    quotes is skipped, or 0 if they are `required`.
    """

    def __init__(self, *, required: bool = False) -> None:
        self._required = required

    def spec(self) -> RewardSpec:
        version = "1-required" if self._required else "1"
        return RewardSpec("quotes", version=version, range=(0.0, 1.0))

    def score_one(self, request: RewardRequest) -> RewardResult:
        quotes = request.trace.quotes
        if not quotes:
            if self._required:
                return RewardResult(request.id, score=0.0, components={"quotes": 0.0})
            return RewardResult(request.id, "skipped")
        answers = {"A": request.answer_a, "B": request.answer_b}
        found = sum(occurs(quote.text, answers[quote.letter]) for quote in quotes)
        return RewardResult(
            request.id, score=found / len(quotes), components={"quotes": float(len(quotes))}
        )
