"""A step's batch as bytes: all that a learner is given, so that the step can be taken again.

A prompt that several samples share is held once. Equal batches give equal bytes. Free of torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from learning.windows import TopTokens, TrainSample, prompt_key


def dump_batches(mini_batches: Sequence[Sequence[TrainSample]]) -> bytes:
    """A safetensors file of `mini_batches`, each an optimizer step's samples."""
    samples = [sample for batch in mini_batches for sample in batch]
    prompts = {prompt_key(sample): sample.prompt_ids for sample in samples}
    number = {key: index for index, key in enumerate(prompts)}
    completions = [sample.completion_ids for sample in samples]
    tensors = {
        "mini_batch_sizes": _ints(map(len, mini_batches)),  # [M]
        "prompt_lengths": _ints(map(len, prompts.values())),  # [P]
        "prompts": _joined(list(prompts.values()), np.int32),  # one behind the other
        "prompt_of_sample": _ints(number[prompt_key(sample)] for sample in samples),  # [S]
        "completion_lengths": _ints(map(len, completions)),  # [S]
        "completions": _joined(completions, np.int32),
        "advantages": np.array([sample.advantage for sample in samples], np.float64),  # [S]
    }
    logprobs = [s.rollout_logprobs for s in samples if s.rollout_logprobs is not None]
    if logprobs:  # of all samples or, in distillation, of none
        assert len(logprobs) == len(samples)
        tensors["rollout_logprobs"] = _joined(logprobs, np.float32)
    teachers = [sample.teacher for sample in samples if sample.teacher is not None]
    if teachers:  # of all samples or of none
        assert len(teachers) == len(samples)
        tensors["teacher_ids"] = np.concatenate([top.ids for top in teachers])  # [tokens, k]
        tensors["teacher_logprobs"] = np.concatenate([top.logprobs for top in teachers])
    return save(tensors)


def load_batches(data: bytes) -> list[list[TrainSample]]:
    """What `dump_batches` was given."""
    tensors = load(data)
    prompts = _split(tensors["prompts"], tensors["prompt_lengths"])
    completions = _split(tensors["completions"], tensors["completion_lengths"])
    logprobs: Sequence[NDArray[np.float32] | None] = [None] * len(completions)
    if "rollout_logprobs" in tensors:
        logprobs = _split(tensors["rollout_logprobs"], tensors["completion_lengths"])
    teachers: Sequence[TopTokens | None] = [None] * len(completions)
    if "teacher_ids" in tensors:
        lengths = tensors["completion_lengths"]
        parts = (_split(tensors[f"teacher_{name}"], lengths) for name in ("ids", "logprobs"))
        teachers = [TopTokens(*both) for both in zip(*parts, strict=True)]
    samples = iter(
        [
            TrainSample(prompts[prompt], completion, float(advantage), logprob, teacher)
            for prompt, completion, advantage, logprob, teacher in zip(
                tensors["prompt_of_sample"],
                completions,
                tensors["advantages"],
                logprobs,
                teachers,
                strict=True,
            )
        ]
    )
    return [[next(samples) for _ in range(size)] for size in tensors["mini_batch_sizes"]]


def _ints(values: Iterable[int]) -> NDArray[np.int32]:
    return np.array(list(values), np.int32)


def _joined(arrays: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)


def _split(joined: NDArray[Any], lengths: NDArray[np.int32]) -> list[NDArray[Any]]:
    return np.split(joined, np.cumsum(lengths)[:-1]) if len(lengths) else []
