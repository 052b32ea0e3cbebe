"""One judgment as a run keeps it, for people to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from judging.records import Judgment
from rewards.groups import Group
from rewards.protocol import Json, RewardResult

QUESTION_CHARS = 500  # of the question kept beside a trace, enough to know it by


@dataclass(frozen=True, slots=True)
class TraceRecord:
    """One judgment as it is kept in `traces/` and shown as a sample."""

    presentation_uid: str
    order: str
    sample: int
    question: str  # the start of the last user turn
    gold: str
    verdict: str | None
    reason: str | None  # why there is no verdict
    status: str  # of the reward
    score: float | None
    components: Mapping[str, float]  # of each reward, and of their components
    info: Mapping[str, Json]
    text: str
    tokens: int
    finish_reason: str
    seed: int
    weight_version_min: int
    weight_version_max: int

    @classmethod
    def of(cls, judgment: Judgment, result: RewardResult) -> TraceRecord:
        presentation, rollout = judgment.presentation, judgment.rollout
        verdict = judgment.trace.verdict
        return cls(
            presentation_uid=presentation.uid,
            order=presentation.order,
            sample=rollout.sample,
            question=presentation.pair.conversation[-1].content[:QUESTION_CHARS],
            gold=presentation.gold,
            verdict=verdict.letter,
            reason=verdict.reason,
            status=result.status,
            score=result.score,
            components=result.components,
            info=result.info,
            text=rollout.text,
            tokens=len(rollout.token_ids),
            finish_reason=rollout.finish_reason,
            seed=rollout.seed,
            weight_version_min=rollout.weight_version_min,
            weight_version_max=rollout.weight_version_max,
        )


def trace_records(groups: Sequence[Group]) -> list[TraceRecord]:
    return [
        TraceRecord.of(judgment, result)
        for group in groups
        for judgment, result in zip(group.judgments, group.results, strict=True)
    ]
