"""Which sample goes where: ranks and micro-batches of one optimizer step. Free of torch.

Every rank gets the same number of micro-batches (collectives must match), each within a token
budget, samples of like length together. Samples of one prompt stay together, since a packed
micro-batch computes their prompt once. The loss is normalised over the whole window, so that no
choice made here changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class TopTokens:
    """A teacher's likeliest tokens at each place of a completion, with their log-probabilities."""

    ids: NDArray[np.int32]  # [completion, k]
    logprobs: NDArray[np.float32]  # [completion, k]; -inf: no token that the student knows


@dataclass(frozen=True, slots=True, eq=False)
class TrainSample:
    """One prompt with one completion."""

    prompt_ids: NDArray[np.int32]  # [prompt]
    completion_ids: NDArray[np.int32]  # [completion]
    advantage: float = 0.0  # of every token of the completion
    rollout_logprobs: NDArray[np.float32] | None = None  # [completion], as the engine gave them
    teacher: TopTokens | None = None

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """One optimizer step's share of one rank, with the totals over all ranks."""

    micro_batches: tuple[tuple[TrainSample, ...], ...]  # may hold empty ones, to keep ranks in step
    total_tokens: int  # completion tokens of the window on all ranks
    total_sequences: int


# Samples that are placed as one, with the tokens that computing them takes.
Unit = tuple[TrainSample, ...]


def prompt_key(sample: TrainSample) -> bytes:
    """Equal for samples of the same prompt."""
    return sample.prompt_ids.tobytes()


def computed_tokens(samples: Sequence[TrainSample], *, share_prompts: bool) -> int:
    """Tokens that a forward pass over `samples` computes; neighbours may share their prompt."""
    if not share_prompts:
        return sum(sample.tokens for sample in samples)
    prompts = sum(len(next(same).prompt_ids) for _, same in groupby(samples, key=prompt_key))
    return prompts + sum(len(sample.completion_ids) for sample in samples)


def plan_windows(
    samples: Sequence[TrainSample], *, ranks: int, micro_batch_tokens: int, share_prompts: bool
) -> list[Window]:
    """Splits the samples of one optimizer step over `ranks`; returns one window a rank.

    Args:
        share_prompts: whether neighbours in a micro-batch that have the same prompt compute it
            once, as packed ones do.

    Raises:
        ValueError: a sample is longer than a micro-batch may be.
    """
    longest = max(sample.tokens for sample in samples)
    if longest > micro_batch_tokens:
        raise ValueError(
            f"a sample has {longest} tokens, more than learner.micro_batch_tokens "
            f"({micro_batch_tokens}); raise it or lower the limits on prompt and completion"
        )
    planner = _Planner(ranks, micro_batch_tokens, share_prompts)
    shares = planner.balance(planner.units(samples, longest))
    batches = [planner.fill(share) for share in shares]
    count = max(len(share) for share in batches)
    total_tokens = sum(len(sample.completion_ids) for sample in samples)
    return [
        Window(
            micro_batches=tuple(share + [()] * (count - len(share))),
            total_tokens=total_tokens,
            total_sequences=len(samples),
        )
        for share in batches
    ]


@dataclass(frozen=True, slots=True)
class _Planner:
    ranks: int
    budget: int  # tokens of a micro-batch
    share_prompts: bool

    def units(self, samples: Sequence[TrainSample], longest: int) -> list[Unit]:
        """Samples of one prompt together, cut where they exceed a micro-batch or a rank's share."""
        if not self.share_prompts:
            return [(sample,) for sample in samples]
        ordered = sorted(samples, key=prompt_key)
        limit = min(self.budget, max(longest, self._tokens(ordered) // self.ranks))
        groups = (sorted(same, key=_length) for _, same in groupby(ordered, key=prompt_key))
        return [unit for group in groups for unit in self._cut(group, limit)]

    def balance(self, units: Sequence[Unit]) -> list[list[Unit]]:
        """Largest first, each to the rank with the fewest tokens so far."""
        shares: list[list[Unit]] = [[] for _ in range(self.ranks)]
        loads = [0] * self.ranks
        for unit in sorted(units, key=self._tokens, reverse=True):
            rank = loads.index(min(loads))
            shares[rank].append(unit)
            loads[rank] += self._tokens(unit)
        return shares

    def fill(self, units: Sequence[Unit]) -> list[Unit]:
        """Micro-batches of the units, in order of length so that like lengths meet."""
        ordered = sorted(units, key=lambda unit: max(map(_length, unit)), reverse=True)
        return self._cut([sample for unit in ordered for sample in unit], self.budget)

    def _cut(self, samples: Sequence[TrainSample], limit: int) -> list[Unit]:
        """Neighbours together, as many as keep within `limit` tokens."""
        pieces: list[list[TrainSample]] = []
        filled = limit
        for sample in samples:
            tokens = sample.tokens
            if self.share_prompts and pieces and prompt_key(pieces[-1][-1]) == prompt_key(sample):
                tokens = len(sample.completion_ids)
            if filled + tokens > limit:
                pieces.append([])
                filled, tokens = 0, sample.tokens
            pieces[-1].append(sample)
            filled += tokens
        return [tuple(piece) for piece in pieces]

    def _tokens(self, samples: Sequence[TrainSample]) -> int:
        return computed_tokens(samples, share_prompts=self.share_prompts)


def _length(sample: TrainSample) -> int:
    return sample.tokens
