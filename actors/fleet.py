"""The rollout fleet: N rollout workers behind one `generate`."""

from __future__ import annotations

import asyncio
from typing import Any

from actors.environment import engine_environment
from actors.placement import has_gpus
from actors.rollout import EngineSpec, GenerationRequest, RolloutWorker
from actors.settings import Deadlines
from actors.waiting import within
from judging.records import Rollout


class RolloutFleet:
    """Life: construct, `start`, `generate` at will, `stop`."""

    def __init__(self, spec: EngineSpec, deadlines: Deadlines) -> None:
        self._spec, self._deadlines = spec, deadlines
        self.workers: list[Any] = []
        self._in_flight: list[int] = []  # samples that each worker is writing

    @property
    def processes_per_engine(self) -> int:
        """Processes of one engine that hold weights: its tensor-parallel workers."""
        return self._spec.settings.tensor_parallel

    async def start(self) -> None:
        """Starts the workers side by side; returns when all can generate."""
        import ray

        settings = self._spec.settings
        actor = ray.remote(RolloutWorker).options(
            num_cpus=settings.cpu_threads,
            num_gpus=settings.tensor_parallel if has_gpus() else 0,
            max_concurrency=100_000,  # the engine queues; Ray must not
            runtime_env={"env_vars": engine_environment(settings)},
        )
        self.workers = [actor.remote(self._spec) for _ in range(settings.workers)]
        self._in_flight = [0] * settings.workers
        starts = asyncio.gather(*(worker.start.remote() for worker in self.workers))
        await within(self._deadlines.start_s, "starting the rollout workers", starts)

    async def generate(self, request: GenerationRequest) -> list[Rollout]:
        """The samples of one request, from the worker with the least to do."""
        index = self._in_flight.index(min(self._in_flight))
        self._in_flight[index] += request.samples
        try:
            call = self.workers[index].generate.remote([request])
            what = f"rollout worker {index}, {request.samples} samples of one prompt"
            return (await within(self._deadlines.generate_s, what, call))[0]
        finally:
            self._in_flight[index] -= request.samples

    async def stop(self) -> None:
        """Ends the engines."""
        if self.workers:
            stops = asyncio.gather(*(worker.stop.remote() for worker in self.workers))
            await within(self._deadlines.stop_s, "stopping the rollout workers", stops)
