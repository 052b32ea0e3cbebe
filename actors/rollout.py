"""The rollout worker: one vLLM engine in a Ray actor.

Token ids go in and come out; nothing is tokenized here. Every sample carries its seed, the
log-probabilities of its tokens at the sampling temperature, and the weight versions that wrote it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.log_lines import name_run
from actors.settings import PauseMode, RolloutSettings
from actors.transfer import Manifest, TransferEndpoint, manifest_to_wire
from actors.urls import local_copy
from judging.errors import ConfigurationError, DataError
from judging.records import FinishReason, Rollout
from learning.windows import TopTokens, TrainSample

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput, RequestOutput


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What a rollout worker needs to start its engine."""

    model_path: str  # a folder, a name on the hub or a URL
    dtype: str  # "fp32" or "bf16"
    context_tokens: int  # longest prompt and completion together
    settings: RolloutSettings
    trust_remote_code: bool = False
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to be sampled."""

    presentation_uid: str
    token_ids: tuple[int, ...]
    samples: int
    seed: int  # of sample 0; sample i has seed + i
    temperature: float  # 0: greedy
    max_new_tokens: int
    logprobs: bool = True  # of what is sampled; training needs them, judging does not


_FIRST = -1  # priority of what does not wait for samples; theirs is 0
_VLLM_PAUSE = {"keep": "keep", "drain": "wait", "abort": "abort"}


class RolloutWorker:
    """Life: construct, `start`; use it as a Ray actor with concurrent calls."""

    def __init__(self, spec: EngineSpec) -> None:
        name_run("a rollout worker")
        from transformers import AutoTokenizer

        self._spec = spec = replace(spec, model_path=local_copy(spec.model_path))
        self._version = 0
        self._tokenizer = AutoTokenizer.from_pretrained(
            spec.model_path,
            revision=spec.revision,
            trust_remote_code=spec.trust_remote_code,
        )
        self._stop_token_ids = _stop_token_ids(spec, self._tokenizer)
        self._requests = 0
        self._generates = asyncio.Event()  # not while it waits for weights
        self._generates.set()
        self._engine: Any = None

    async def start(self) -> None:
        """Starts the engine; returns when it can generate."""
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from actors.progress import ProgressCounter

        arguments = AsyncEngineArgs(**engine_arguments(self._spec))
        self._engine = AsyncLLM.from_engine_args(arguments, stat_loggers=[ProgressCounter])
        await self._engine.get_weight_version()

    async def progress(self) -> int:
        """A count that rises with every iteration of the engine: it stands still in one that hangs,
        however long its samples are."""
        from actors.progress import ProgressCounter

        await self._engine.check_health()
        return ProgressCounter.iterations

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Rollout]]:
        """The samples of each request, in the order of the requests.

        Raises:
            DataError: a prompt is empty or leaves no room for the completion.
        """
        return list(await asyncio.gather(*(self._generate(request) for request in requests)))

    async def _generate(self, request: GenerationRequest) -> list[Rollout]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._check(request)
        params = SamplingParams(
            n=request.samples,
            temperature=request.temperature,
            seed=request.seed if request.temperature > 0 else None,
            max_tokens=request.max_new_tokens,
            logprobs=0 if request.logprobs else None,
            flat_logprobs=request.logprobs,
            stop_token_ids=self._stop_token_ids,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        while True:
            await self._generates.wait()
            first_version = self._version
            output = await self._run(request.token_ids, params)
            # A publication with pause: abort takes requests back; the new weights begin anew.
            if all(sample.finish_reason != FinishReason.ABORT for sample in output.outputs):
                break
        return [self._rollout(request, sample, first_version) for sample in output.outputs]

    async def _run(
        self, token_ids: Sequence[int], params: Any, *, priority: int = 0
    ) -> RequestOutput:
        self._requests += 1
        stream = self._engine.generate(
            {"prompt_token_ids": list(token_ids)},
            params,
            request_id=str(self._requests),
            priority=priority,
        )
        return [output async for output in stream][-1]

    def _check(self, request: GenerationRequest) -> None:
        prompt, limit = len(request.token_ids), self._spec.context_tokens
        if prompt == 0:
            raise DataError(f"{request.presentation_uid}: its prompt has no tokens")
        if prompt + request.max_new_tokens > limit:
            raise DataError(
                f"{request.presentation_uid}: {prompt} prompt tokens and {request.max_new_tokens} "
                f"new ones exceed the context of {limit}; lower data.max_prompt_tokens"
            )

    def _rollout(
        self, request: GenerationRequest, sample: CompletionOutput, first_version: int
    ) -> Rollout:
        token_ids = np.asarray(sample.token_ids, dtype=np.int32)
        logprobs = np.empty(0, np.float32)
        if request.logprobs:
            flat: Any = sample.logprobs  # one logprob a position, the sampled token's
            logprobs = np.asarray(flat.logprobs, np.float32)[flat.start_indices]
        return Rollout(
            presentation_uid=request.presentation_uid,
            sample=sample.index,
            seed=request.seed + sample.index,
            token_ids=token_ids,
            logprobs=logprobs,
            text=self._tokenizer.decode(token_ids, skip_special_tokens=True),
            finish_reason=FinishReason(sample.finish_reason or "abort"),
            weight_version_min=first_version,
            weight_version_max=self._version,
        )

    async def join_transfer(self, endpoint: TransferEndpoint, rank: int) -> None:
        """Joins the broadcast group of the weight transport as `rank` (1 and above)."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        info = {
            "host": endpoint.host,
            "port": endpoint.port,
            "world_size": endpoint.world_size,
            "timeout_s": endpoint.timeout_s,
            "rank": rank,
        }
        await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info=info))

    async def pause(self, mode: PauseMode) -> None:
        """Generates nothing until new weights are there; `mode` says what becomes of the samples
        that are being written. Returns when they are held, finished or taken back."""
        self._generates.clear()
        await self._engine.pause_generation(mode=_VLLM_PAUSE[mode], clear_cache=True)

    async def receive_weights(
        self, version: int, manifest: Manifest, probe: Sequence[int]
    ) -> list[float]:
        """Takes over the weights that rank 0 broadcasts, and generates again.

        Returns:
            The new weights' log-probabilities of `probe[1:]`, each given the tokens before it.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        update = WeightTransferUpdateRequest(update_info={"manifest": manifest_to_wire(manifest)})
        await self._engine.start_weight_update()
        await self._engine.update_weights(update)
        await self._engine.finish_weight_update(weight_version=str(version))
        self._version = version
        await self._engine.resume_generation()
        self._generates.set()
        return await self.score_tokens(probe)

    async def score_tokens(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities of `token_ids[1:]`, each given the tokens before it."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        output = await self._run(token_ids, params, priority=_FIRST)
        entries: Any = output.prompt_logprobs
        return [
            entry[token].logprob for token, entry in zip(token_ids[1:], entries[1:], strict=True)
        ]

    async def top_tokens(self, sample: TrainSample, k: int) -> TopTokens:
        """The `k` likeliest tokens at each place of the sample's completion, given what is before
        it, with their log-probabilities at temperature 1.

        Raises:
            DataError: prompt and completion exceed the context.
        """
        from vllm import SamplingParams

        if sample.tokens > self._spec.context_tokens:
            raise DataError(
                f"a trace and its prompt have {sample.tokens} tokens, more than the context of "
                f"{self._spec.context_tokens}; lower distill.max_tokens"
            )
        # The last token is not given but sampled: what it is, is no matter.
        given = [*sample.prompt_ids.tolist(), *sample.completion_ids[:-1].tolist()]
        params = SamplingParams(
            temperature=1.0,
            max_tokens=1,
            logprobs=k,
            prompt_logprobs=k,
            flat_logprobs=True,
            detokenize=False,
        )
        output = await self._run(given, params)
        inner: Any = output.prompt_logprobs
        places = [_top(inner, place, k) for place in range(len(sample.prompt_ids), len(given))]
        places.append(_top(output.outputs[0].logprobs, 0, k))
        ids, logprobs = zip(*places, strict=True)
        return TopTokens(np.asarray(ids, np.int32), np.asarray(logprobs, np.float32))

    async def stop(self) -> None:
        """Ends the engine's processes."""
        if self._engine is not None:
            self._engine.shutdown()


def _top(flat: Any, place: int, k: int) -> tuple[list[int], list[float]]:
    """Of vLLM's `FlatLogprobs` the likeliest at a place, behind the token that stands there."""
    first = flat.start_indices[place] + 1
    return flat.token_ids[first : first + k], flat.logprobs[first : first + k]


def engine_arguments(spec: EngineSpec) -> dict[str, Any]:
    """Arguments of vLLM's `AsyncEngineArgs` for this machine."""
    import torch
    from vllm.config import WeightTransferConfig

    settings = spec.settings
    arguments: dict[str, Any] = {
        "model": spec.model_path,
        "revision": spec.revision,
        "trust_remote_code": spec.trust_remote_code,
        "skip_tokenizer_init": True,
        "dtype": {"fp32": "float32", "bf16": "bfloat16"}[spec.dtype],
        "max_model_len": spec.context_tokens,
        "max_num_seqs": settings.max_concurrent_sequences,
        "tensor_parallel_size": settings.tensor_parallel,
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",  # the probe of a publication goes before all samples
        "enforce_eager": settings.enforce_eager,
        "generation_config": "vllm",  # a checkpoint's own top-p would bias the policy ratio
        "logprobs_mode": "processed_logprobs",  # at the sampling temperature
        "max_logprobs": -1,  # who asks is the run itself
        "disable_log_stats": True,
        "worker_extension_cls": "actors.vllm_transfer.WorkerExtension",
        "weight_transfer_config": WeightTransferConfig(backend="gloo"),
    }
    if settings.max_batched_tokens is not None:
        arguments["max_num_batched_tokens"] = settings.max_batched_tokens
    if torch.cuda.is_available():
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization
    else:
        arguments["block_size"] = 32  # vLLM's own 128 would share no prefix of a short prompt
        arguments["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * 2**30)
        arguments["distributed_executor_backend"] = "uni"  # see actors.environment
        # A prompt cut into chunks rewinds its seeded generator, which a CPU generator cannot.
        arguments["enable_chunked_prefill"] = False
        arguments.setdefault("max_num_batched_tokens", max(spec.context_tokens, 4096))
    return arguments


def _stop_token_ids(spec: EngineSpec, tokenizer: Any) -> list[int]:
    """The tokens that end a turn: the tokenizer's, and those of the generation configuration."""
    from transformers import GenerationConfig

    ids = {tokenizer.eos_token_id}
    try:
        config = GenerationConfig.from_pretrained(spec.model_path, revision=spec.revision or "main")
        eos = config.eos_token_id
        ids.update(eos if isinstance(eos, list) else [eos])
    except OSError:
        pass  # the file is optional
    return sorted(token for token in ids if token is not None)


def worker_class(name: str) -> type:
    """The class that `rollout.worker` names.

    Raises:
        ConfigurationError: it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"rollout.worker ({name}) cannot be imported: {error}; write package.module:Class"
        ) from error
