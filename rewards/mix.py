"""Several rewards as one score. Pure: results in, results out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean
from typing import Literal

from rewards.protocol import Json, RewardResult

Normalize = Literal["sum", "each"]
_EPSILON = 1e-6


def combine(
    results: Mapping[str, Sequence[RewardResult]],
    weights: Mapping[str, float],
    *,
    normalize: Normalize = "sum",
) -> list[RewardResult]:
    """One result for each sample of a group: the weighted sum of its rewards' scores.

    A sample of which a weighted reward failed has failed: no score is made of the others alone, as
    its siblings' scores have another meaning. A reward that was skipped adds nothing; a sample that
    all skipped is skipped. Rewards of weight 0 are recorded and decide nothing.

    Args:
        results: of each reward by its name in the mix, the group's samples in order.
        weights: of each reward; those missing have weight 0.
        normalize: "each" standardizes every reward within the group before it is weighted (GDPO,
            arXiv 2601.05242), so that none drowns another by its scale. "sum" leaves the scores
            as they are; the advantage standardizes their sum (GRPO).
    """
    weighted = {name: weight for name, weight in weights.items() if weight and name in results}
    scores = {
        name: _standardized(results[name]) if normalize == "each" else _raw(results[name])
        for name in weighted
    }
    columns = zip(*results.values(), strict=True)
    return [
        _combined(
            dict(zip(results, column, strict=True)),
            {name: (weight, scores[name][place]) for name, weight in weighted.items()},
        )
        for place, column in enumerate(columns)
    ]


def _combined(
    results: Mapping[str, RewardResult], parts: Mapping[str, tuple[float, float | None]]
) -> RewardResult:
    components = {
        **{name: result.score for name, result in results.items() if result.score is not None},
        **{
            f"{name}/{part}": value
            for name, result in results.items()
            for part, value in result.components.items()
        },
    }
    errors = {name: str(r.error or r.status) for name, r in results.items() if _has_failed(r)}
    info: dict[str, Json] = {name: dict(r.info) for name, r in results.items() if r.info}
    if errors:
        info["errors"] = dict(errors)
    any_id = next(iter(results.values())).id
    for name in parts:
        if name in errors:
            status = results[name].status
            return RewardResult(any_id, status, None, components, info, errors[name])
    known = [weight * score for weight, score in parts.values() if score is not None]
    if not known:
        return RewardResult(any_id, "skipped", None, components, info)
    return RewardResult(any_id, "ok", sum(known), components, info)


def _has_failed(result: RewardResult) -> bool:
    return result.status in ("error", "timeout")


def _raw(results: Sequence[RewardResult]) -> list[float | None]:
    return [result.score for result in results]


def _standardized(results: Sequence[RewardResult]) -> list[float | None]:
    known = [result.score for result in results if result.score is not None]
    if not known:
        return [None] * len(results)
    mean = fmean(known)
    deviation = sqrt(fmean((score - mean) ** 2 for score in known))
    return [
        None if result.score is None else (result.score - mean) / (deviation + _EPSILON)
        for result in results
    ]
