"""Teachers on rollout workers: a model of their own, or the run's weights as they are."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.fleet import RolloutFleet
from actors.rollout import GenerationRequest
from judging.errors import DataError
from judging.prompts import tokenize_prompt
from judging.records import FinishReason, Presentation, Rollout
from orchestrator.cluster import ray_cluster
from orchestrator.config import RunConfig
from orchestrator.eval_engines import engines
from orchestrator.material import load_tokenizer
from orchestrator.run import Run
from orchestrator.synthesis_plan import of_engine_teacher
from synthesis.passes import Scorer
from synthesis.records import Answer, RequestFailed, TeacherRequest, Usage
from synthesis.settings import Teacher

_SEED_BITS = 30


@dataclass(slots=True)
class FleetService:
    """Asks a fleet."""

    fleet: RolloutFleet
    tokenizer: Any
    context_tokens: int
    end: Callable[[], Awaitable[None]] | None = None  # of a fleet that is this teacher's alone

    async def check(self) -> None:
        """It generates already."""

    async def answer(self, request: TeacherRequest) -> Answer:
        prompt = tokenize_prompt(request.presentation, request.messages, self.tokenizer)
        if len(prompt.token_ids) + request.max_new_tokens > self.context_tokens:
            raise RequestFailed(
                f"its prompt of {len(prompt.token_ids):,} tokens and an answer of "
                f"{request.max_new_tokens:,} do not fit into the context of "
                f"{self.context_tokens:,}: lower max_new_tokens, or raise model.context_tokens in "
                "a run of its own"
            )
        asked = GenerationRequest(
            presentation_uid=request.presentation.uid,
            token_ids=prompt.token_ids,
            samples=1,
            seed=int(request.key[:16], 16) >> (64 - _SEED_BITS),
            temperature=request.temperature,
            max_new_tokens=request.max_new_tokens,
            logprobs=False,
        )
        try:
            (rollout,) = await self.fleet.generate(asked)
        except DataError as error:
            raise RequestFailed(str(error)) from error
        usage = Usage(len(prompt.token_ids), 0, len(rollout.token_ids))
        return Answer(rollout.text, rollout.finish_reason is FinishReason.LENGTH, usage)

    def written(self, key: str) -> None:
        """Nothing keeps it."""

    async def close(self) -> None:
        if self.end is not None:
            await self.end()


def policy_service(run: Run) -> FleetService:
    """The run's own engines, which hold its current weights."""
    tokenizer = load_tokenizer(run.config, run.material.model_path)
    return FleetService(run.fleet, tokenizer, run.config.context_tokens)


async def engine_service(
    stack: ExitStack, config: RunConfig, teacher: Teacher, say: Callable[[str], object]
) -> FleetService:
    """Engines of the teacher's own, on a cluster that is left when the teacher is not needed."""
    own = of_engine_teacher(config, teacher)
    cpus = max(os.cpu_count() or 1, own.rollout.workers * own.rollout.cpu_threads)
    cluster = stack.enter_context(ray_cluster(cpus))
    say(f"starting rollout workers for {teacher.model}")
    opened = engines(own, cluster, tell=say)
    fleet = await opened.__aenter__()
    tokenizer = await asyncio.to_thread(load_tokenizer, own, str(teacher.model))

    async def end() -> None:
        await opened.__aexit__(None, None, None)

    return FleetService(fleet, tokenizer, own.context_tokens, end)


def policy_scorer(run: Run) -> Scorer:
    """What reward.mix gives each of the samples of one presentation."""
    weights = run.panel.weights(run.config.reinforce, 1.0)

    async def score(shown: Presentation, answers: Sequence[Answer]) -> Sequence[float | None]:
        rollouts = [_rollout(shown, sample, answer) for sample, answer in enumerate(answers)]
        (group,) = await run.panel.score([(shown, rollouts)], weights)
        return group.scores

    return score


def _rollout(shown: Presentation, sample: int, answer: Answer) -> Rollout:
    """As the verifiers are given it; nothing is trained on it."""
    return Rollout(
        presentation_uid=shown.uid,
        sample=sample,
        seed=0,
        token_ids=np.zeros(answer.usage.output_tokens, np.int32),
        logprobs=np.zeros(0, np.float32),
        text=answer.text,
        finish_reason=FinishReason.LENGTH if answer.is_truncated else FinishReason.STOP,
        weight_version_min=0,
        weight_version_max=0,
    )
