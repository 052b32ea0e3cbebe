"""Rollout workers that do what a request's uid tells them, each evil once."""

import asyncio
import os
import signal
import time
from pathlib import Path

import numpy as np

from judging.records import FinishReason, Rollout
from learning.windows import TopTokens


def rollout(request, index: int, **changes) -> Rollout:
    fields = {
        "presentation_uid": request.presentation_uid,
        "sample": index,
        "seed": request.seed + index,
        "token_ids": np.array([5, 6, 7], np.int32),
        "logprobs": np.array([-0.5, -1.0, 0.0], np.float32),
        "text": f"{os.getpid()}",
        "finish_reason": FinishReason.STOP,
        "weight_version_min": 0,
        "weight_version_max": 0,
    }
    return Rollout(**{**fields, **changes})


class Worker:
    def __init__(self, spec) -> None:
        self._done = Path(spec.model_path)  # a folder that tells what was done before
        self._progress = 0

    async def start(self) -> None:
        if (self._done / "does-not-start").exists():
            raise RuntimeError("no memory for the model")
        deaths = self._done / "deaths-at-start"
        if deaths.exists() and (left := int(deaths.read_text())):
            deaths.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)

    async def progress(self) -> int:
        self._progress += 1
        return self._progress

    async def generate(self, requests) -> list[list[Rollout]]:
        (request,) = requests
        deed, _, _ = request.presentation_uid.partition("/")
        rollouts = [rollout(request, index) for index in range(request.samples)]
        match deed:
            case "slow":
                await asyncio.sleep(1)
            case "poison":
                raise RuntimeError("a kernel failed")
            case "die" if self._is_first(deed):
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang" if self._is_first(deed):
                time.sleep(1000)  # nothing in this process goes on
            case "garbage" if self._is_first(deed):
                return [rollouts[1:]]
        return [rollouts]

    async def top_tokens(self, sample, k: int) -> TopTokens:
        count = len(sample.completion_ids) - self._is_first("garbage")
        return TopTokens(np.full((count, k), 3, np.int32), np.full((count, k), -2.0, np.float32))

    def _is_first(self, deed: str) -> bool:
        try:
            (self._done / deed).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    async def stop(self) -> None:
        return None
