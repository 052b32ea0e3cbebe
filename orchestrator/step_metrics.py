"""What a step's groups say about the policy, as metrics."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from judging.records import FinishReason
from learning.advantages import has_zero_variance, standard_deviation
from rewards.groups import Group


def group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Metrics over all judgments of a step; a failed reward counts as failed, never as a score."""
    judgments = [judgment for group in groups for judgment in group.judgments]
    scores = [score for group in groups for score in group.scores]
    known = [score for score in scores if score is not None]
    letters = [judgment.trace.verdict.letter for judgment in judgments]
    parsed = [letter for letter in letters if letter is not None]
    lengths = [len(judgment.rollout.token_ids) for judgment in judgments]
    truncated = [j.rollout.finish_reason is FinishReason.LENGTH for j in judgments]
    metrics = {
        "reward/failed": len(scores) - len(known),
        "accuracy": fmean(judgment.is_correct for judgment in judgments),
        "parseable": len(parsed) / len(letters),
        "truncated": fmean(truncated),
        "zero_variance_groups": sum(has_zero_variance(group.scores) for group in groups),
        "groups": len(groups),
        "response_tokens": fmean(lengths),
        "tokens": sum(lengths),
    }
    if known:
        metrics |= {"reward/mean": fmean(known), "reward/std": standard_deviation(known)}
    if parsed:
        metrics["first_position_rate"] = fmean(letter == "A" for letter in parsed)
    return metrics
