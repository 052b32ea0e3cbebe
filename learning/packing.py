"""The tensors of a micro-batch: sequences end to end in one row, or padded rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from learning.windows import TrainSample


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Tensors of one forward pass; T tokens, S sequences, C completion tokens of the longest."""

    input_ids: torch.Tensor  # packed [1, T], padded [S, L]
    position_ids: torch.Tensor  # like input_ids
    attention_mask: torch.Tensor | None  # padded [S, L]; packed: None
    sequence_starts: torch.Tensor | None  # packed [S + 1], int32: where each sequence begins
    longest: int  # tokens of the longest sequence
    source: torch.Tensor  # [S, C] flat positions whose next token is a completion token
    labels: torch.Tensor  # [S, C] that next token
    mask: torch.Tensor  # [S, C] float, 1 where there is one
    advantages: torch.Tensor  # [S, 1]
    rollout_logprobs: torch.Tensor  # [S, C], 0 where unknown

    def to(self, device: torch.device) -> MicroBatch:
        tensors = {
            name: value.to(device)
            for name in self.__slots__
            if isinstance(value := getattr(self, name), torch.Tensor)
        }
        return replace(self, **tensors)


# A rank without work left still takes part in the collectives of a forward and backward pass.
_FILLER = TrainSample(np.zeros(1, np.int32), np.zeros(1, np.int32))


def build_micro_batch(samples: Sequence[TrainSample], *, packing: bool) -> MicroBatch:
    """The tensors of one micro-batch; an empty one holds a filler sequence with mask 0."""
    rows = samples or (_FILLER,)
    lengths = [sample.tokens for sample in rows]
    longest = max(lengths)
    starts = (
        np.concatenate([[0], np.cumsum(lengths)]) if packing else np.arange(len(rows)) * longest
    )
    width = max(len(sample.completion_ids) for sample in rows)
    shape = (len(rows), width)
    source, labels = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    mask, logprobs = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for row, sample in enumerate(rows):
        count = len(sample.completion_ids)
        first = starts[row] + len(sample.prompt_ids) - 1
        source[row, :count] = np.arange(first, first + count)
        labels[row, :count] = sample.completion_ids
        mask[row, :count] = 1.0 if samples else 0.0
        if sample.rollout_logprobs is not None:
            logprobs[row, :count] = sample.rollout_logprobs
    return MicroBatch(
        **_inputs(rows, lengths, packing),
        sequence_starts=torch.from_numpy(starts.astype(np.int32)) if packing else None,
        longest=longest,
        source=torch.from_numpy(source),
        labels=torch.from_numpy(labels),
        mask=torch.from_numpy(mask),
        advantages=torch.tensor([[sample.advantage] for sample in rows], dtype=torch.float32),
        rollout_logprobs=torch.from_numpy(logprobs),
    )


def _inputs(rows: Sequence[TrainSample], lengths: Sequence[int], packing: bool) -> dict[str, Any]:
    tokens = [np.concatenate([sample.prompt_ids, sample.completion_ids]) for sample in rows]
    positions = [np.arange(length) for length in lengths]
    if packing:
        return {
            "input_ids": torch.from_numpy(np.concatenate(tokens).astype(np.int64))[None],
            "position_ids": torch.from_numpy(np.concatenate(positions))[None],
            "attention_mask": None,
        }
    longest = max(lengths)
    attention = np.arange(longest)[None] < np.asarray(lengths)[:, None]
    ids = np.zeros((len(rows), longest), np.int64)
    ids[attention] = np.concatenate(tokens)
    return {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(np.broadcast_to(np.arange(longest), ids.shape).copy()),
        "attention_mask": torch.from_numpy(attention.astype(np.int64)),
    }
