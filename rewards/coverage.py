"""`builtin:coverage`: does the evaluation come back to every criterion of the rubric?"""

from __future__ import annotations

import re

from rewards.protocol import RewardRequest, RewardResult, RewardSpec
from rewards.pure import PureReward

_WORD = re.compile(r"[^\W\d_]{4,}")
_STEM = 5  # letters by which "clarity" and "clear" differ, but "accurate" and "accuracy" do not


class RubricCoverage(PureReward):
    """The share of the rubric's criteria, one a line, that the evaluation takes up.

    A criterion is taken up if a third of its longer words, by their first letters, occur in the
    evaluation. Gavel's own measure; it counts words and understands none. Skipped without a rubric.
    """

    def spec(self) -> RewardSpec:
        return RewardSpec("coverage", range=(0.0, 1.0))

    def score_one(self, request: RewardRequest) -> RewardResult:
        criteria = [words for line in request.trace.rubric.splitlines() if (words := _stems(line))]
        if not criteria:
            return RewardResult(request.id, "skipped")
        said = _stems(request.trace.evaluation)
        covered = sum(3 * len(words & said) >= len(words) for words in criteria)
        return RewardResult(
            request.id,
            score=covered / len(criteria),
            components={"criteria": float(len(criteria))},
        )


def _stems(text: str) -> frozenset[str]:
    return frozenset(word[:_STEM] for word in _WORD.findall(text.casefold()))
