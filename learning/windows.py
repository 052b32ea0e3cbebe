"""Which sample goes where: ranks and micro-batches of one optimizer step. Free of torch.

Every rank gets the same number of micro-batches (collectives must match), each within a token
budget, samples of like length together. The loss is normalised over the whole window, so that no
choice made here changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class TrainSample:
    """One prompt with one completion."""

    prompt_ids: NDArray[np.int32]  # [prompt]
    completion_ids: NDArray[np.int32]  # [completion]
    advantage: float = 0.0  # of every token of the completion
    rollout_logprobs: NDArray[np.float32] | None = None  # [completion], as the engine gave them

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """One optimizer step's share of one rank, with the totals over all ranks."""

    micro_batches: tuple[tuple[TrainSample, ...], ...]  # may hold empty ones, to keep ranks in step
    total_tokens: int  # completion tokens of the window on all ranks
    total_sequences: int


def plan_windows(
    samples: Sequence[TrainSample], *, ranks: int, micro_batch_tokens: int
) -> list[Window]:
    """Splits the samples of one optimizer step over `ranks`; returns one window a rank.

    Raises:
        ValueError: a sample is longer than a micro-batch may be.
    """
    for sample in samples:
        if sample.tokens > micro_batch_tokens:
            raise ValueError(
                f"a sample has {sample.tokens} tokens, more than learner.micro_batch_tokens "
                f"({micro_batch_tokens}); raise it or lower the limits on prompt and completion"
            )
    shares = _balance(samples, ranks)
    batches = [_fill(share, micro_batch_tokens) for share in shares]
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


def _balance(samples: Sequence[TrainSample], ranks: int) -> list[list[TrainSample]]:
    """Longest first, each to the rank with the fewest tokens so far."""
    shares: list[list[TrainSample]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for sample in sorted(samples, key=lambda sample: -sample.tokens):
        rank = loads.index(min(loads))
        shares[rank].append(sample)
        loads[rank] += sample.tokens
    return shares


def _fill(samples: Sequence[TrainSample], budget: int) -> list[tuple[TrainSample, ...]]:
    """Fills micro-batches in order; the order is by length, so like lengths meet."""
    batches: list[list[TrainSample]] = []
    filled = budget
    for sample in samples:
        if filled + sample.tokens > budget:
            batches.append([])
            filled = 0
        batches[-1].append(sample)
        filled += sample.tokens
    return [tuple(batch) for batch in batches]
