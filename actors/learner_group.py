"""The learner group: L ranks that act as one learner."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from actors.environment import learner_environment
from actors.learner import Learner
from actors.placement import Placement
from actors.settings import Deadlines
from actors.transfer import Manifest, TransferEndpoint
from actors.urls import Place
from actors.waiting import within
from judging.errors import GavelError, InfrastructureError
from learning.settings import DistillSettings, GrpoSettings, LearnerSettings, ModelSpec
from learning.windows import TrainSample, Window, plan_windows

GRACE_S = 5.0  # after one rank failed, for the others to tell whether they live


class LearnersLost(InfrastructureError):
    """A rank died or hangs, and with it the group: `restart` brings it back."""

    has_died = False  # rather than given no answer


class LearnerGroup:
    """Life: construct, `start`, begin a phase, step, ...; `restart` after `LearnersLost`."""

    def __init__(
        self,
        settings: LearnerSettings,
        deadlines: Deadlines,
        placement: Placement,
        *,
        tell: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._settings, self._deadlines = settings, deadlines
        self._placement, self._tell = placement, tell
        self.ranks: list[Any] = []
        self.restarts = 0

    async def start(self, spec: ModelSpec, *, temperature: float, seed: int) -> None:
        """Starts all ranks; returns when each holds the model.

        Raises:
            LearnersLost: a rank died, and not the first time beyond `max_restarts` or `start_s`; or
                gave no answer in `start_s`.
        """
        self._spec, self._temperature, self._seed = spec, temperature, seed
        deadline_s = time.monotonic() + self._deadlines.start_s
        while True:
            try:
                return await self._start(spec)
            except LearnersLost as lost:
                is_late = time.monotonic() > deadline_s
                if not lost.has_died or is_late or self.restarts >= self._settings.max_restarts:
                    raise
                self._tell("a learner died while it started: all of them once more")
                self.restarts += 1
                self.stop()

    async def restart(self, weights: str | None) -> None:
        """Ends what is left of the ranks and starts them anew, with the weights of a checkpoint
        folder, or None for those of the model itself."""
        self.restarts += 1
        self.stop()
        await self._start(replace(self._spec, weights=weights))

    async def _start(self, spec: ModelSpec) -> None:
        import ray

        environment = {"env_vars": learner_environment(self._settings)}
        actor = ray.remote(runtime_env=environment)(Learner)
        count = self._settings.ranks
        places = [await self._placement.options("learner", rank) for rank in range(count)]
        self.ranks = [
            actor.options(**place).remote(rank, count) for rank, place in enumerate(places)
        ]
        timeout_s = self._deadlines.start_s
        endpoint = await self.open_rendezvous(count, timeout_s)
        arguments = (spec, self._settings, self._temperature, self._seed, endpoint)
        await self._all(timeout_s, "starting the learners", "start", *arguments)

    def stop(self) -> None:
        """Ends the ranks at once."""
        import ray

        for rank in self.ranks:
            with suppress(ValueError):  # it is gone already
                ray.kill(rank)
        self.ranks = []

    async def open_rendezvous(self, world_size: int, timeout_s: float) -> TransferEndpoint:
        """A place on rank 0's node where the members of a new process group meet; `timeout_s` is
        that of the group."""
        opening = [self.ranks[0].open_rendezvous.remote()]
        what = "a meeting place on learner rank 0"
        ((host, port),) = await _together(self._deadlines.start_s, what, opening)
        return TransferEndpoint(host, port, world_size, timeout_s)

    # ---- training --------------------------------------------------------------------------------

    async def begin_distill(self, settings: DistillSettings, total_steps: int) -> None:
        what = "preparing the learners for distillation"
        arguments = (settings, total_steps)
        await self._all(self._deadlines.start_s, what, "begin_distill", *arguments)

    async def begin_reinforce(
        self, settings: GrpoSettings, total_steps: int, reference: Place
    ) -> None:
        what = "preparing the learners for reinforcement"
        arguments = (settings, total_steps, str(reference))
        await self._all(self._deadlines.start_s, what, "begin_reinforce", *arguments)

    async def resume(self, folder: Place) -> None:
        """Takes up the optimizer's state of a checkpoint of the phase that was just begun."""
        what = f"reading checkpoint {folder}"
        await self._all(self._deadlines.checkpoint_s, what, "resume", folder)

    async def distill_step(self, samples: Sequence[TrainSample]) -> dict[str, float]:
        """One supervised optimizer step on `samples`."""
        return await self._on_windows("a distillation step", "distill_step", samples)

    async def distill_loss(self, samples: Sequence[TrainSample]) -> float:
        """The loss of `samples` (nats a completion token) by the weights as they are."""
        return await self._on_windows("the loss of held-out traces", "distill_loss", samples)

    async def _on_windows(self, what: str, method: str, samples: Sequence[TrainSample]) -> Any:
        calls = [
            getattr(rank, method).remote(window)
            for rank, window in zip(self.ranks, self._plan(samples), strict=True)
        ]
        return (await _together(self._deadlines.train_s, what, calls))[0]

    async def policy_step(self, mini_batches: Sequence[Sequence[TrainSample]]) -> dict[str, float]:
        """One optimizer step for each mini-batch, in order."""
        per_batch = [self._plan(samples) for samples in mini_batches]
        per_rank = zip(*per_batch, strict=True)
        calls = [
            rank.policy_step.remote(windows)
            for rank, windows in zip(self.ranks, per_rank, strict=True)
        ]
        timeout_s = self._deadlines.train_s * len(mini_batches)
        return (await _together(timeout_s, "a policy step", calls))[0]

    def _plan(self, samples: Sequence[TrainSample]) -> list[Window]:
        return plan_windows(
            samples,
            ranks=self._settings.ranks,
            micro_batch_tokens=self._settings.micro_batch_tokens,
            share_prompts=self._settings.packing,
        )

    async def save(self, folder: Place) -> None:
        """Writes a Hugging Face checkpoint folder; at a URL with its manifest."""
        timeout_s = self._deadlines.checkpoint_s
        await self._all(timeout_s, f"writing checkpoint {folder}", "save", folder)

    # ---- weight transport ------------------------------------------------------------------------

    async def join_transfer(
        self, endpoint: TransferEndpoint, bucket_bytes: int
    ) -> tuple[Manifest, str | None]:
        """Rank 0 joins the weight transport's group; what a publication will carry, and what went
        wrong on the side of the engines."""
        what = "joining the learners to the weight transport"
        timeout_s = self._deadlines.publish_s
        return (await self._all(timeout_s, what, "join_transfer", endpoint, bucket_bytes))[0]

    async def publish(self, probe: TrainSample) -> tuple[list[float], str | None]:
        """Broadcasts the weights; the policy's log-probabilities of the probe's completion, and
        what went wrong on the way to the engines."""
        timeout_s = self._deadlines.publish_s
        return (await self._all(timeout_s, "sending the weights", "publish", probe))[0]

    async def _all(self, timeout_s: float, what: str, method: str, *arguments: Any) -> list[Any]:
        calls = [getattr(rank, method).remote(*arguments) for rank in self.ranks]
        return await _together(timeout_s, what, calls)


async def _together(timeout_s: float, what: str, calls: Sequence[Any]) -> list[Any]:
    """What the ranks answered.

    Raises:
        LearnersLost: a rank died, or did not answer in time or after another one failed.
        GavelError: a rank failed by itself, as it would do again.
    """
    from ray.exceptions import RayActorError

    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await within(timeout_s, what, asyncio.shield(asyncio.gather(*tasks)))
    except GavelError as error:
        _, silent = await asyncio.wait(tasks, timeout=GRACE_S)
        errors = [task.exception() for task in tasks if task not in silent]
        has_died = any(isinstance(each, RayActorError) for each in errors)
        if silent or has_died:
            lost = LearnersLost(str(error))
            lost.has_died = has_died
            raise lost from error
        raise
    finally:
        for task in tasks:
            task.cancel()
