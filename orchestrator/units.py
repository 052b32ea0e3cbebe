"""Generating and scoring units of prompts: one prompt, or both orders of a pair."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from actors.fleet import RolloutFleet
from actors.rollout import GenerationRequest
from judging.records import JudgePrompt, Rollout
from orchestrator.reward_panel import RewardPanel
from orchestrator.telemetry import Telemetry
from rewards.groups import Group

# Prompts that are judged and scored together.
Unit = tuple[JudgePrompt, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the prompts of a phase are sampled."""

    samples: int  # of each prompt
    temperature: float  # 0: greedy
    max_new_tokens: int
    seed: int  # of the run


@dataclass(frozen=True, slots=True)
class UnitJudge:
    """Judges units with what a run has; greedy evaluation and sampling alike."""

    fleet: RolloutFleet
    panel: RewardPanel
    telemetry: Telemetry
    sampling: Sampling

    async def judge(
        self, unit: Unit, place: str, weights: Mapping[str, float] | None
    ) -> list[Group]:
        """A group of each prompt; equal places give equal seeds.

        Without `weights`, as in evaluation, the score is the verdict's correctness alone.
        """
        is_trained = weights is not None
        samples = (self._sample(prompt, place, logprobs=is_trained) for prompt in unit)
        rollouts = await asyncio.gather(*samples)
        sampled = [(p.presentation, r) for p, r in zip(unit, rollouts, strict=True)]
        with self.telemetry.span("score"):
            return await self.panel.score(sampled, weights)

    async def _sample(self, prompt: JudgePrompt, place: str, *, logprobs: bool) -> list[Rollout]:
        uid = prompt.presentation.uid
        request = GenerationRequest(
            presentation_uid=uid,
            token_ids=prompt.token_ids,
            samples=self.sampling.samples,
            seed=_seed(self.sampling.seed, place, uid),
            temperature=self.sampling.temperature,
            max_new_tokens=self.sampling.max_new_tokens,
            logprobs=logprobs,
        )
        with self.telemetry.span("generate"):
            return await self.fleet.generate(request)


def _seed(run_seed: int, place: str, uid: str) -> int:
    """A prompt's own seed, so that a sample does not depend on what else is sampled."""
    digest = hashlib.sha256(f"{run_seed}/{place}/{uid}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
