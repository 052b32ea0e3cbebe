"""What a step's groups say about the policy, as metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from judging.records import FinishReason, Judgment, Letter
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
    return metrics | _bias_metrics(judgments)


def _bias_metrics(judgments: Sequence[Judgment]) -> dict[str, float]:
    """What the verdicts depend on that they should not: length and order."""
    longer = [
        _is_longer(judgment)
        for judgment in judgments
        if judgment.trace.verdict.letter is not None
        and len(judgment.presentation.answer_a) != len(judgment.presentation.answer_b)
    ]
    metrics = {"length_bias": fmean(longer)} if longer else {}
    # Sample i of one order goes with sample i of the other, as the rewards see them.
    by_sample: defaultdict[tuple[str, int], list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        key = (judgment.presentation.pair.uid, judgment.rollout.sample)
        by_sample[key].append(judgment)
    twice = [pair for pair in by_sample.values() if len(pair) == 2]
    letters = [tuple(judgment.trace.verdict.letter for judgment in pair) for pair in twice]
    known = [pair for pair in letters if None not in pair]
    if twice:
        metrics["consistent_accuracy"] = fmean(all(j.is_correct for j in pair) for pair in twice)
    if known:
        metrics["flip_rate"] = fmean(first == second for first, second in known)
    return metrics | _tie_rate(twice)


def _tie_rate(twice: Sequence[Sequence[Judgment]]) -> dict[str, float]:
    """A pair whose samples, over both orders, name each answer as often has no majority."""
    balance: defaultdict[str, int] = defaultdict(int)
    for judgment in (judgment for pair in twice for judgment in pair):
        if judgment.trace.verdict.letter is not None:
            balance[judgment.presentation.pair.uid] += 1 if judgment.is_correct else -1
    return {"tie_rate": fmean(votes == 0 for votes in balance.values())} if balance else {}


def _is_longer(judgment: Judgment) -> bool:
    """Whether the verdict is for the longer answer."""
    shown = judgment.presentation
    longer: Letter = "A" if len(shown.answer_a) > len(shown.answer_b) else "B"
    return judgment.trace.verdict.letter == longer


def reward_metrics(groups: Sequence[Group], weights: Mapping[str, float]) -> dict[str, float]:
    """Of each reward of the mix: its weight, mean score and components, and how often it failed."""
    results = [result for group in groups for result in group.results]
    metrics: dict[str, float] = {}
    values: defaultdict[str, list[float]] = defaultdict(list)
    for result in results:
        for name, number in result.components.items():
            values[name if "/" in name else f"{name}/score"].append(number)
    for name, weight in weights.items():
        errors = [result.info.get("errors") for result in results]
        failed = sum(name in error for error in errors if isinstance(error, Mapping))
        scored = len(values.get(f"{name}/score", ()))
        metrics |= {
            f"reward/{name}/weight": weight,
            f"reward/{name}/failed": failed / len(results),
            f"reward/{name}/skipped": (len(results) - scored - failed) / len(results),
        }
    return metrics | {f"reward/{name}": fmean(numbers) for name, numbers in values.items()}


def age_metrics(groups: Sequence[Group], version: int) -> dict[str, float]:
    """How old the samples are that weights of `version` learn from, by their oldest tokens."""
    rollouts = [judgment.rollout for group in groups for judgment in group.judgments]
    ages = [version - rollout.weight_version_min for rollout in rollouts]
    spans = [r.weight_version_max > r.weight_version_min for r in rollouts]
    return {"staleness": fmean(ages), "staleness_max": max(ages), "mixed_versions": fmean(spans)}
