"""A rollout worker without vLLM: a small model sampled by plain torch, one request at a time.

    gavel run CONFIG rollout.worker=benchmarks.stand_in:StandInWorker

What it answers is a function of its weights and the request alone, bit for bit, whatever else it
was asked before: with it two runs can be compared as a whole. It takes weights as an engine does.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.rollout import EngineSpec, GenerationRequest
from actors.settings import PauseMode
from actors.transfer import Manifest, TransferEndpoint
from actors.urls import local_copy
from judging.records import FinishReason, Rollout
from learning.windows import TopTokens, TrainSample


class StandInWorker:
    """As `actors.rollout.RolloutWorker`."""

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._version = self._iterations = 0
        self._model_in_use = asyncio.Lock()
        self._is_paused = False

    async def start(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        path = local_copy(self._spec.model_path)
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        # Not by learning.policy, which imports DeepSpeed: that takes longer than all else here.
        model = AutoModelForCausalLM.from_pretrained(
            path, use_safetensors=True, dtype=torch.float32, attn_implementation="sdpa"
        )
        self._model: Any = model.requires_grad_(False).eval()

    async def process_id(self) -> int:
        return os.getpid()

    async def progress(self) -> int:
        return self._iterations

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Rollout]]:
        return [await self._generate(request) for request in requests]

    async def _generate(self, request: GenerationRequest) -> list[Rollout]:
        async with self._model_in_use:
            return await asyncio.to_thread(self._sample, request)

    def _sample(self, request: GenerationRequest) -> list[Rollout]:
        import torch

        end = self._tokenizer.eos_token_id
        generator = torch.Generator().manual_seed(request.seed)
        ids = torch.tensor([request.token_ids] * request.samples)
        cache: Any = None
        tokens, logprobs, is_done = [], [], torch.zeros(request.samples, dtype=torch.bool)
        with torch.inference_mode():
            for _ in range(request.max_new_tokens):
                output = self._model(input_ids=ids, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                logits = output.logits[:, -1] / (request.temperature or 1.0)
                table = torch.log_softmax(logits.float(), dim=-1)
                if request.temperature:
                    ids = torch.multinomial(table.exp(), 1, generator=generator)
                else:
                    ids = table.argmax(dim=-1, keepdim=True)
                tokens.append(ids[:, 0])
                logprobs.append(table.gather(1, ids)[:, 0])
                self._iterations += 1
                is_done |= ids[:, 0] == end
                if is_done.all():
                    break
        rows = zip(torch.stack(tokens, 1), torch.stack(logprobs, 1), strict=True)
        return [
            self._rollout(request, index, row.numpy(), its.numpy())
            for index, (row, its) in enumerate(rows)
        ]

    def _rollout(self, request: GenerationRequest, index: int, tokens: Any, its: Any) -> Rollout:
        ends = np.flatnonzero(tokens == self._tokenizer.eos_token_id)
        length = int(ends[0]) + 1 if len(ends) else len(tokens)
        ids = tokens[:length].astype(np.int32)
        return Rollout(
            presentation_uid=request.presentation_uid,
            sample=index,
            seed=request.seed + index,
            token_ids=ids,
            logprobs=its[: length if request.logprobs else 0].astype(np.float32),
            text=self._tokenizer.decode(ids, skip_special_tokens=True),
            finish_reason=FinishReason.STOP if len(ends) else FinishReason.LENGTH,
            weight_version_min=self._version,
            weight_version_max=self._version,
        )

    async def top_tokens(self, sample: TrainSample, k: int) -> TopTokens:
        async with self._model_in_use:
            return await asyncio.to_thread(self._top_tokens, sample, k)

    def _top_tokens(self, sample: TrainSample, k: int) -> TopTokens:
        tokens = [*sample.prompt_ids.tolist(), *sample.completion_ids.tolist()]
        top = self._log_softmax(tokens)[len(sample.prompt_ids) - 1 :].topk(k)
        self._iterations += 1
        return TopTokens(top.indices.numpy().astype(np.int32), top.values.numpy())

    # ---- weights -----------------------------------------------------------------------------

    async def pause(self, mode: PauseMode) -> None:
        """Whatever the mode, what is being written is finished first."""
        if not self._is_paused:
            await self._model_in_use.acquire()
            self._is_paused = True

    async def join_transfer(self, endpoint: TransferEndpoint, rank: int) -> None:
        from actors.gloo import join_group

        self._group = await asyncio.to_thread(join_group, endpoint, rank)

    async def receive_weights(
        self, version: int, manifest: Manifest, probe: Sequence[int]
    ) -> list[float]:
        await asyncio.to_thread(self._receive, manifest)
        self._version = version
        self._model_in_use.release()
        self._is_paused = False
        return self._score(probe)

    def _receive(self, manifest: Manifest) -> None:
        from actors.gloo import receive_buckets

        parameters = dict(self._model.named_parameters())
        for name, tensor in receive_buckets(self._group, manifest):
            parameters[name].data.copy_(tensor)

    def _score(self, probe: Sequence[int]) -> list[float]:
        import torch

        table = self._log_softmax(probe)
        return table.gather(1, torch.tensor(probe[1:])[:, None])[:, 0].tolist()

    def _log_softmax(self, tokens: Sequence[int]) -> Any:
        """Of each token after the first, given those before it: [tokens - 1, vocabulary]."""
        import torch

        with torch.inference_mode():
            logits = self._model(input_ids=torch.tensor([list(tokens)])).logits[0, :-1]
            return torch.log_softmax(logits.float(), dim=-1)

    async def stop(self) -> None:
        return None
