"""The engines of an evaluation: rollout workers alone, started once for all benchmarks."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeVar

from actors.fleet import RolloutFleet
from actors.placement import Placement, has_gpus
from actors.rollout import EngineSpec, GenerationRequest
from actors.settings import RolloutSettings
from evaluation.harness import Answer, Task
from judging.errors import GavelError, Stop
from judging.prompts import PromptTemplate, tokenize_prompt
from orchestrator.cluster import Cluster
from orchestrator.config import RunConfig
from orchestrator.facts import model_facts
from orchestrator.memory import host_memory
from orchestrator.stopping import SIGNALS

T = TypeVar("T")

_QUEUED = 1.5  # requests in flight, of what the engines take at a time


def requests_in_flight(rollout: RolloutSettings) -> int:
    """More than the engines take at a time, but none that waits for long."""
    return round(rollout.workers * rollout.max_concurrent_sequences * _QUEUED)


@dataclass(frozen=True, slots=True)
class EngineJudge:
    """Asks the fleet."""

    fleet: RolloutFleet
    template: PromptTemplate
    tokenizer: Any
    _: KW_ONLY
    max_prompt_tokens: int
    max_new_tokens: int
    temperature: float
    seed: int

    async def __call__(self, task: Task) -> Sequence[Answer] | None:
        """None if the prompt is longer than `max_prompt_tokens`; raises as the fleet."""
        shown = task.presentation
        prompt = tokenize_prompt(shown, self.template.render(shown), self.tokenizer)
        if len(prompt.token_ids) > self.max_prompt_tokens:
            return None
        request = GenerationRequest(
            presentation_uid=shown.uid,
            token_ids=prompt.token_ids,
            samples=len(task.votes),
            seed=vote_seed(self.seed, shown.uid) + task.votes.start,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            logprobs=False,
        )
        rollouts = await self.fleet.generate(request)
        return [Answer(each.text, len(each.token_ids), each.finish_reason) for each in rollouts]


def vote_seed(seed: int, presentation_uid: str) -> int:
    """Of the first vote; a vote does not depend on what else is judged."""
    digest = hashlib.sha256(f"{seed}/vote/{presentation_uid}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 2  # leaves room for the other votes


@asynccontextmanager
async def engines(
    config: RunConfig, cluster: Cluster, *, tell: Callable[[str], object]
) -> AsyncIterator[RolloutFleet]:
    """A fleet that can generate, on the cluster that this process has joined.

    Raises:
        InfrastructureError: the engines do not start within deadlines.start_s, or the cluster has
            no room for them within deadlines.placement_s.
    """
    sections = (config.placement, config.learner, config.rollout, config.deadlines)
    is_asked = not (cluster.is_own or has_gpus() or config.rollout.tensor_parallel > 1)
    memory = host_memory(config, model_facts(config)) if is_asked else {}
    placement = Placement(*sections, memory_bytes=memory, tell=tell)
    assert config.model.path is not None
    spec = EngineSpec(
        model_path=config.model.path,
        dtype=config.model.dtype,
        context_tokens=config.context_tokens,
        settings=config.rollout,
        trust_remote_code=config.model.trust_remote_code,
        revision=config.model.revision,
    )
    fleet = RolloutFleet(spec, config.deadlines, placement, tell=tell)
    fleet.bring_up = lambda engine: fleet.has_weights(engine, engine.actor)  # the model's own
    try:
        await fleet.start()
        yield fleet
    finally:
        try:
            await fleet.stop()
        except GavelError as error:  # it does not change what was judged
            tell(f"while ending the engines: {error}")


async def unless_lost(cluster: Cluster, work: Awaitable[T]) -> T:
    """What `work` gives, as long as the cluster is there; raises InfrastructureError else."""
    lost, done = asyncio.ensure_future(cluster.lost()), asyncio.ensure_future(work)
    try:
        await asyncio.wait({lost, done}, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return done.result()
        raise lost.result()
    finally:
        for each in (lost, done):
            each.cancel()
        await asyncio.gather(lost, done, return_exceptions=True)


async def until_signal(work: Awaitable[T]) -> T:
    """What `work` gives; raises Stop when this process is asked to end."""
    driving, got = asyncio.current_task(), list[int]()
    assert driving is not None

    def end(number: int) -> None:
        got.append(number)
        driving.cancel()

    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    try:
        return await work
    except asyncio.CancelledError:
        if not got:
            raise
        stop = Stop("stopped; what was judged is kept, and the same command goes on")
        stop.exit_code = 128 + got[0]
        raise stop from None
