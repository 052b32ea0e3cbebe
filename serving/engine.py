"""One vLLM engine of this process behind a judge's `generate`.

The engine, its arguments and its sampling are those of a rollout worker, without Ray.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from actors.environment import engine_environment
from actors.settings import RolloutSettings
from actors.urls import local_copy
from judging.errors import ConfigurationError, InfrastructureError
from judging.prompts import load_template
from judging.records import FinishReason, Message, PreferencePair, Presentation
from serving.judge import Completion, Generate, Judge
from serving.together import together

if TYPE_CHECKING:
    from actors.rollout import RolloutWorker

_START_S = 900.0
_STOP_S = 30.0
_CHECK_S = 1.0
_NO_CONTEXT = "its config.json names no max_position_embeddings: give --context-tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Which model judges, and how its engine is started."""

    path: str  # a folder, a name on the hub or a URL
    template: str = "instruct"  # the one that it was trained with
    dtype: Literal["fp32", "bf16"] = "bf16"
    context_tokens: int | None = None  # prompt and judgment together; None: what the model takes
    revision: str | None = None
    trust_remote_code: bool = False
    engine: RolloutSettings = field(default_factory=RolloutSettings)


class Engine:
    """Life: `start`, use, `stop`; one in a process, before vLLM is imported there."""

    def __init__(self, settings: ModelSettings) -> None:
        os.environ.update(engine_environment(settings.engine))
        self._settings = settings
        self._path = local_copy(settings.path)
        self._context_tokens = settings.context_tokens or _context_tokens(settings, self._path)
        self._worker: RolloutWorker | None = None
        self._running = 0  # prompts

    @property
    def context_tokens(self) -> int:
        return self._context_tokens

    async def start(self) -> None:
        """Returns when it can generate.

        Raises:
            InfrastructureError: it is not up within 15 minutes.
        """
        from actors.rollout import EngineSpec, RolloutWorker

        settings = self._settings
        worker = RolloutWorker(
            EngineSpec(
                model_path=self._path,
                dtype=settings.dtype,
                context_tokens=self._context_tokens,
                settings=settings.engine,
                trust_remote_code=settings.trust_remote_code,
                revision=settings.revision,
            )
        )
        try:
            async with asyncio.timeout(_START_S):
                await worker.start()
        except TimeoutError:
            raise InfrastructureError(
                f"the engine of {settings.path} was not up within {_START_S:g} s"
            ) from None
        self._worker = worker

    async def __call__(
        self, prompts: Sequence[Sequence[int]], samples: int, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """As `judge.Generate`. A cancellation takes back what is being written."""
        return await together(
            self._generate(prompt, samples, seed)
            for prompt, seed in zip(prompts, seeds, strict=True)
        )

    async def _generate(self, prompt: Sequence[int], samples: int, seed: int) -> list[Completion]:
        from vllm.v1.engine.exceptions import EngineDeadError

        from actors.rollout import GenerationRequest

        request = GenerationRequest(
            presentation_uid="the prompt",
            token_ids=tuple(prompt),
            samples=samples,
            seed=seed,
            temperature=self._settings.engine.temperature if samples > 1 else 0.0,
            max_new_tokens=self._settings.engine.max_new_tokens,
            logprobs=False,
        )
        worker = self._started()
        self._running += 1
        try:
            (rollouts,) = await worker.generate([request])
        except EngineDeadError as error:
            raise InfrastructureError("the engine has died") from error
        finally:
            self._running -= 1
        return [
            Completion(
                text=rollout.text,
                tokens=len(rollout.token_ids),
                truncated=rollout.finish_reason == FinishReason.LENGTH,
            )
            for rollout in rollouts
        ]

    async def died(self, hang_s: float) -> None:
        """Returns when the engine is dead, or hangs: see `hung`."""
        from vllm.v1.engine.exceptions import EngineDeadError

        with suppress(EngineDeadError):
            await hung(self._started().progress, lambda: self._running > 0, hang_s)

    async def stop(self) -> None:
        """Ends the engine's processes."""
        worker, self._worker = self._worker, None
        if worker is not None:
            async with asyncio.timeout(_STOP_S):
                await worker.stop()

    def _started(self) -> RolloutWorker:
        if self._worker is None:
            raise InfrastructureError("the engine is not running")
        return self._worker


async def hung(
    progress: Callable[[], Awaitable[int]],
    has_work: Callable[[], bool],
    hang_s: float,
    check_s: float = _CHECK_S,
) -> None:
    """Returns when the count of iterations stood still for `hang_s` seconds in which there was work
    to do, of one request or of several after each other: each is given up at its deadline."""
    seen, still_s, checked = -1, 0.0, time.monotonic()
    while still_s <= hang_s:
        count, now = await progress(), time.monotonic()
        if count != seen:
            seen, still_s = count, 0.0
        elif has_work():
            still_s += now - checked
        checked = now
        await asyncio.sleep(check_s)


def make_judge(settings: ModelSettings, generate: Generate, context_tokens: int) -> Judge:
    """A judge whose template and tokenizer were tried on a sample.

    Raises:
        ConfigurationError: they do not go together, or leave no room for a judgment.
    """
    from transformers import AutoTokenizer

    room = context_tokens - settings.engine.max_new_tokens
    if room < 1:
        raise ConfigurationError(
            f"--max-new-tokens {settings.engine.max_new_tokens} leaves no room for a prompt in the "
            f"context of {context_tokens} tokens: lower it"
        )
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            local_copy(settings.path, weights=False),
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise ConfigurationError(f"{settings.path}: no tokenizer: {cause}") from error
    judge = Judge(load_template(settings.template), tokenizer, generate, max_prompt_tokens=room)
    sample = PreferencePair("sample", (Message("user", "2 + 2?"),), "4", "5")
    judge.prompt(Presentation(sample, "chosen_first"))
    return judge


def _context_tokens(settings: ModelSettings, path: str) -> int:
    """Raises ConfigurationError for what is no model."""
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(
            path, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
    except (OSError, ValueError) as error:
        cause = str(error).splitlines()[0]
        raise ConfigurationError(
            f"{settings.path}: no model that can be served: {cause}"
        ) from error
    tokens = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(tokens, int):
        raise ConfigurationError(f"{settings.path}: {_NO_CONTEXT}")
    return tokens
