"""The learner group: L ranks that act as one learner."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.environment import learner_environment
from actors.learner import Learner
from actors.placement import has_gpus
from actors.settings import Deadlines
from actors.transfer import TransferEndpoint
from actors.waiting import within
from learning.settings import GrpoSettings, LearnerSettings, ModelSpec, OptimizerSettings
from learning.windows import TrainSample, Window, plan_windows


class LearnerGroup:
    """Life: construct, `start`, begin a phase, step, ..."""

    def __init__(self, settings: LearnerSettings, deadlines: Deadlines) -> None:
        self._settings, self._deadlines = settings, deadlines
        self.ranks: list[Any] = []

    async def start(self, spec: ModelSpec, *, temperature: float, seed: int) -> None:
        """Starts all ranks; returns when each holds the model."""
        import ray

        actor = ray.remote(Learner).options(
            num_cpus=self._settings.cpu_threads,
            num_gpus=1 if has_gpus() else 0,
            runtime_env={"env_vars": learner_environment(self._settings)},
        )
        count = self._settings.ranks
        self.ranks = [actor.remote(rank, count) for rank in range(count)]
        timeout_s = self._deadlines.start_s
        endpoint = await self.open_rendezvous(count)
        starting = self._all("start", spec, self._settings, temperature, seed, endpoint)
        await within(timeout_s, "starting the learners", starting)

    async def open_rendezvous(self, world_size: int) -> TransferEndpoint:
        """A place on rank 0's node where the members of a new process group meet."""
        opening = self.ranks[0].open_rendezvous.remote()
        timeout_s = self._deadlines.start_s
        host, port = await within(timeout_s, "starting learner rank 0", opening)
        return TransferEndpoint(host, port, world_size, timeout_s)

    async def begin_distill(self, optimizer: OptimizerSettings, total_steps: int) -> None:
        begin = self._all("begin_distill", optimizer, total_steps)
        await within(self._deadlines.start_s, "preparing the learners for distillation", begin)

    async def begin_reinforce(
        self, settings: GrpoSettings, total_steps: int, reference: Path | str
    ) -> None:
        begin = self._all("begin_reinforce", settings, total_steps, str(reference))
        await within(self._deadlines.start_s, "preparing the learners for reinforcement", begin)

    async def resume(self, folder: Path) -> None:
        """Takes up the optimizer's state of a checkpoint of the phase that was just begun."""
        resuming = self._all("resume", folder)
        await within(self._deadlines.checkpoint_s, f"reading checkpoint {folder}", resuming)

    async def distill_step(self, samples: Sequence[TrainSample]) -> dict[str, float]:
        """One supervised optimizer step on `samples`."""
        windows = self._plan(samples)
        calls = [
            rank.distill_step.remote(window)
            for rank, window in zip(self.ranks, windows, strict=True)
        ]
        step = asyncio.gather(*calls)
        return (await within(self._deadlines.train_s, "a distillation step", step))[0]

    async def policy_step(self, mini_batches: Sequence[Sequence[TrainSample]]) -> dict[str, float]:
        """One optimizer step for each mini-batch, in order."""
        per_batch = [self._plan(samples) for samples in mini_batches]
        per_rank = zip(*per_batch, strict=True)
        calls = [
            rank.policy_step.remote(windows)
            for rank, windows in zip(self.ranks, per_rank, strict=True)
        ]
        step = asyncio.gather(*calls)
        timeout_s = self._deadlines.train_s * len(mini_batches)
        return (await within(timeout_s, "a policy step", step))[0]

    def _plan(self, samples: Sequence[TrainSample]) -> list[Window]:
        return plan_windows(
            samples,
            ranks=self._settings.ranks,
            micro_batch_tokens=self._settings.micro_batch_tokens,
            share_prompts=self._settings.packing,
        )

    async def save(self, folder: Path) -> None:
        """Writes a Hugging Face checkpoint folder."""
        saving = self._all("save", folder)
        await within(self._deadlines.checkpoint_s, f"writing checkpoint {folder}", saving)

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        calls = [getattr(rank, method).remote(*arguments) for rank in self.ranks]
        return list(await asyncio.gather(*calls))
