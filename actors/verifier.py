"""The verifier: parses rollouts with the one parser and scores them with the reward."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from judging.records import FinishReason, Presentation, Rollout, Trace
from judging.traces import parse_trace
from rewards.protocol import RewardRequest, RewardResult
from rewards.verdict import VerdictReward


@dataclass(frozen=True, slots=True)
class Scored:
    trace: Trace
    result: RewardResult


class Verifier:
    """Use it as a Ray actor with concurrent calls."""

    def __init__(self, *, strict_tail: bool) -> None:
        self._strict_tail = strict_tail
        self._reward = VerdictReward(strict_tail=strict_tail)

    async def score(self, presentation: Presentation, rollouts: Sequence[Rollout]) -> list[Scored]:
        """One outcome per rollout of `presentation`, in order."""
        requests = [self._request(presentation, rollout) for rollout in rollouts]
        size = self._reward.spec().max_batch
        batches = [requests[start : start + size] for start in range(0, len(requests), size)]
        scored = await asyncio.gather(*(self._reward.score(batch) for batch in batches))
        results = {result.id: result for batch in scored for result in batch}
        return [Scored(request.trace, results[request.id]) for request in requests]

    def _request(self, presentation: Presentation, rollout: Rollout) -> RewardRequest:
        return RewardRequest(
            id=f"{presentation.uid}#{rollout.sample}",
            conversation=presentation.pair.conversation,
            answer_a=presentation.answer_a,
            answer_b=presentation.answer_b,
            gold=presentation.gold,
            response=rollout.text,
            trace=parse_trace(
                rollout.text,
                strict_tail=self._strict_tail,
                truncated=rollout.finish_reason is FinishReason.LENGTH,
            ),
        )
