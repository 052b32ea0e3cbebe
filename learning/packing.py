"""The tensors of a micro-batch: segments end to end in one row, or padded rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from learning.windows import TrainSample, prompt_key


class _OnDevice:
    """A record of tensors that moves as a whole."""

    def to(self, device: torch.device) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]
        moved = {
            name: value.to(device)
            for name, value in values.items()
            if isinstance(value, torch.Tensor | _OnDevice)
        }
        return replace(self, **moved)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, eq=False)
class Segments(_OnDevice):
    """A packed row as the attention sees it: N segments of queries, end to end.

    A sample alone is one segment and looks at itself. A group's prompt is one segment, and so is
    each of its completions, which looks at the prompt, too: its queries are the last of its keys.
    """

    query_starts: torch.Tensor  # [N + 1], int32
    key_starts: torch.Tensor  # [N + 1], int32
    key_positions: torch.Tensor | None  # where in the row each key is; None: keys are the queries
    longest_query: int
    longest_key: int


@dataclass(frozen=True, eq=False)
class MicroBatch(_OnDevice):
    """Tensors of one forward pass; T tokens, S samples, C completion tokens of the longest."""

    input_ids: torch.Tensor  # packed [1, T], padded [S, L]
    position_ids: torch.Tensor  # like input_ids
    attention_mask: torch.Tensor | None  # padded [S, L]; packed: None
    segments: Segments | None  # packed
    source: torch.Tensor  # [S, C] flat positions whose next token is a completion token
    labels: torch.Tensor  # [S, C] that next token
    mask: torch.Tensor  # [S, C] float, 1 where there is one
    advantages: torch.Tensor  # [S, 1]
    rollout_logprobs: torch.Tensor  # [S, C], 0 where unknown
    teacher_ids: torch.Tensor | None = None  # [S, C, k] of the likeliest next tokens
    teacher_logprobs: torch.Tensor | None = None  # [S, C, k], 0 where there is none


# A rank without work left still takes part in the collectives of a forward and backward pass.
_FILLER = TrainSample(np.zeros(1, np.int32), np.zeros(1, np.int32))


def build_micro_batch(samples: Sequence[TrainSample], *, packing: bool) -> MicroBatch:
    """The tensors of one micro-batch; an empty one holds a filler sample with mask 0.

    Packed, neighbours with the same prompt share it.
    """
    rows = samples or (_FILLER,)
    inputs, places = _pack(rows) if packing else _pad(rows)
    width = max(len(sample.completion_ids) for sample in rows)
    shape = (len(rows), width)
    source, labels = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    mask, logprobs = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for row, (sample, (last_of_prompt, first)) in enumerate(zip(rows, places, strict=True)):
        count = len(sample.completion_ids)
        source[row, :count] = [last_of_prompt, *range(first, first + count - 1)][:count]
        labels[row, :count] = sample.completion_ids
        mask[row, :count] = 1.0 if samples else 0.0
        if sample.rollout_logprobs is not None:
            logprobs[row, :count] = sample.rollout_logprobs
    return MicroBatch(
        **inputs,
        source=torch.from_numpy(source),
        labels=torch.from_numpy(labels),
        mask=torch.from_numpy(mask),
        advantages=torch.tensor([[sample.advantage] for sample in rows], dtype=torch.float32),
        rollout_logprobs=torch.from_numpy(logprobs),
        **_teacher(rows, width),
    )


def _teacher(rows: Sequence[TrainSample], width: int) -> dict[str, Any]:
    """What a teacher said of all of them, or nothing."""
    said = [sample.teacher for sample in rows if sample.teacher is not None]
    if not said:
        return {}
    assert len(said) == len(rows)
    shape = (len(rows), width, said[0].ids.shape[1])
    ids, logprobs = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    for row, top in enumerate(said):
        ids[row, : len(top.ids)], logprobs[row, : len(top.ids)] = top.ids, top.logprobs
    return {
        "teacher_ids": torch.from_numpy(ids),
        "teacher_logprobs": torch.from_numpy(logprobs),
    }


# What the model is given, and of each sample the flat positions of its prompt's last token and of
# its completion's first.
_Laid = tuple[dict[str, Any], list[tuple[int, int]]]


def _pack(rows: Sequence[TrainSample]) -> _Laid:
    row = _Row()
    places: list[tuple[int, int]] = []
    for _, same in groupby(rows, key=prompt_key):
        first, *others = same
        length = len(first.prompt_ids)
        if not others:
            begin = row.append([first.prompt_ids, first.completion_ids], before=None)
            places.append((begin + length - 1, begin + length))
            continue
        begin = row.append([first.prompt_ids], before=None)
        for sample in (first, *others):
            completion = row.append([sample.completion_ids], before=(begin, length))
            places.append((begin + length - 1, completion))
    return row.tensors(), places


class _Row:
    """One packed row in the making."""

    def __init__(self) -> None:
        self._tokens: list[NDArray[np.int32]] = []
        self._positions: list[NDArray[np.int64]] = []
        self._keys: list[NDArray[np.int64]] = []
        self._query_lengths: list[int] = []
        self._length = 0

    def append(self, parts: list[NDArray[np.int32]], *, before: tuple[int, int] | None) -> int:
        """One segment, which follows the tokens (start, length) of `before`; returns its place."""
        begin, count = self._length, sum(map(len, parts))
        start, length = before or (0, 0)
        own = np.arange(begin, begin + count)
        self._tokens.extend(parts)
        self._positions.append(np.arange(length, length + count))
        self._keys.append(np.concatenate([np.arange(start, start + length), own]))
        self._query_lengths.append(count)
        self._length += count
        return begin

    def tensors(self) -> dict[str, Any]:
        key_lengths = [len(keys) for keys in self._keys]
        shared = key_lengths != self._query_lengths
        return {
            "input_ids": torch.from_numpy(np.concatenate(self._tokens).astype(np.int64))[None],
            "position_ids": torch.from_numpy(np.concatenate(self._positions))[None],
            "attention_mask": None,
            "segments": Segments(
                query_starts=_starts(self._query_lengths),
                key_starts=_starts(key_lengths),
                key_positions=torch.from_numpy(np.concatenate(self._keys)) if shared else None,
                longest_query=max(self._query_lengths),
                longest_key=max(key_lengths),
            ),
        }


def _starts(lengths: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def _pad(rows: Sequence[TrainSample]) -> _Laid:
    lengths = np.asarray([sample.tokens for sample in rows])
    longest = int(lengths.max())
    attention = np.arange(longest)[None] < lengths[:, None]
    ids = np.zeros((len(rows), longest), np.int64)
    parts = [part for sample in rows for part in (sample.prompt_ids, sample.completion_ids)]
    ids[attention] = np.concatenate(parts)
    inputs = {
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(np.broadcast_to(np.arange(longest), ids.shape).copy()),
        "attention_mask": torch.from_numpy(attention.astype(np.int64)),
        "segments": None,
    }
    firsts = [row * longest + len(sample.prompt_ids) for row, sample in enumerate(rows)]
    return inputs, [(first - 1, first) for first in firsts]
