"""Whether a rollout worker's answer is one: what is not is never trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actors.rollout import GenerationRequest
from judging.records import FinishReason, Rollout
from learning.windows import TopTokens, TrainSample

_TOLERANCE = 1e-3  # of a log-probability above 0, by rounding


def flaw_of(request: GenerationRequest, rollouts: Sequence[Rollout]) -> str | None:
    """What is wrong with the answer to a request; None if nothing is."""
    if len(rollouts) != request.samples:
        return f"{len(rollouts)} samples instead of {request.samples}"
    for index, rollout in enumerate(rollouts):
        if flaw := _flaw(request, index, rollout):
            return f"sample {index}: {flaw}"
    return None


def flaw_of_top_tokens(sample: TrainSample, k: int, top: TopTokens) -> str | None:
    """What is wrong with the likeliest tokens at each place of a completion; None if nothing is."""
    wanted = (len(sample.completion_ids), k)
    if top.ids.shape != wanted or top.logprobs.shape != wanted:
        return f"{top.ids.shape} tokens, where {wanted} were asked for"
    if not np.isfinite(top.logprobs).all() or (top.logprobs > _TOLERANCE).any():
        return "log-probabilities that are none"
    return "token ids below 0" if (top.ids < 0).any() else None


def _flaw(request: GenerationRequest, index: int, rollout: Rollout) -> str | None:
    tokens, logprobs = rollout.token_ids, rollout.logprobs
    if (rollout.presentation_uid, rollout.sample) != (request.presentation_uid, index):
        return f"it is sample {rollout.sample} of {rollout.presentation_uid}"
    if not 1 <= len(tokens) <= request.max_new_tokens:
        return f"{len(tokens)} tokens, where 1 to {request.max_new_tokens} were asked for"
    if len(logprobs) != (len(tokens) if request.logprobs else 0):
        return f"{len(logprobs)} log-probabilities of {len(tokens)} tokens"
    if not np.isfinite(logprobs).all() or (logprobs > _TOLERANCE).any():
        return "log-probabilities that are none"
    if (tokens < 0).any():
        return "token ids below 0"
    if rollout.finish_reason is FinishReason.ABORT:
        return "it was taken back by the engine"
    return None
