"""The weight publisher: learner rank 0 to the rollout workers, proven by log-probabilities.

The broadcast group is made of whoever takes part in a publication, anew when that changes. A worker
that fails while it receives is taken out, and the others are sent the weights once more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.engine import Answers, Engine
from actors.fleet import RolloutFleet
from actors.health import Health
from actors.learner_group import LearnerGroup, LearnersLost
from actors.settings import Deadlines, PublicationSettings
from actors.transfer import Manifest
from actors.waiting import last_line
from judging.errors import InfrastructureError
from learning.windows import TrainSample


@dataclass(frozen=True, slots=True)
class Publication:
    version: int
    duration_s: float
    # Greatest engine's mean |log-probability of the probe, learner - engine|; None: none was there
    probe_gap: float | None


class WeightPublisher:
    """Life: construct, `publish` with rising versions, each within `updating`."""

    def __init__(
        self,
        learners: LearnerGroup,
        fleet: RolloutFleet,
        settings: PublicationSettings,
        deadlines: Deadlines,
        probe: Sequence[int],
    ) -> None:
        self._learners, self._fleet = learners, fleet
        self._settings, self._deadlines = settings, deadlines
        self._probe = list(probe)
        self._manifest: Manifest = ()
        self._members: tuple[Any, ...] = ()  # of the broadcast group
        self._receiving: asyncio.Task[Answers] | None = None
        self._learners_in_use = asyncio.Lock()
        self.version = 0  # of the weights that the fleet is to have
        fleet.bring_up = self._bring_up

    @asynccontextmanager
    async def updating(self) -> AsyncIterator[None]:
        """Within it the learners' weights may differ from those of `version`."""
        async with self._learners_in_use:
            yield

    async def publish(self) -> Publication:
        """Brings every worker to the learners' weights under the next version.

        Raises:
            LearnersLost: a learner died or hangs.
            InfrastructureError: an engine's log-probabilities of the probe are not the learner's.
        """
        started = time.monotonic()
        gap = await self._send(self._fleet.up(), self.version + 1)
        self.version += 1
        return Publication(self.version, time.monotonic() - started, gap)

    async def _bring_up(self, engine: Engine) -> None:
        """Sends the current weights to one engine, unless a publication has done so meanwhile."""
        async with self.updating():
            if engine.health.state is Health.STALE:
                try:
                    await self._send([engine], self.version)
                except LearnersLost:  # no fault of the engine's: the next publication reaches it
                    return
        if engine.health.state is not Health.HEALTHY:
            raise InfrastructureError(f"rollout worker {engine.number} did not take the weights")

    async def _send(self, engines: Sequence[Engine], version: int) -> float | None:
        """Sends the weights to the engines; the greatest gap, None without any engine.

        Who fails by itself too is taken out.
        """
        actors = {engine: engine.actor for engine in engines}
        answers = await self._attempt(engines, version)
        if failed := _errors(answers):
            # One that died breaks the others' transport too: these get another chance.
            for engine, error in failed.items():
                if isinstance(error, TimeoutError):
                    await self._give_up(engine, version, error)
                else:
                    await self._fleet.look_at(engine)
            answers = await self._attempt([e for e in engines if e.is_up], version)
            for engine in _errors(answers):  # each by itself: one of them may fail the others
                answers |= await self._attempt([engine] if engine.is_up else [], version)
            for engine, error in _errors(answers).items():
                await self._give_up(engine, version, error)
        gaps = {engine: a for engine, a in answers.items() if isinstance(a, float)}
        self._prove(version, gaps)
        for engine in gaps:
            await self._fleet.has_weights(engine, actors[engine])
        return max(gaps.values(), default=None)

    async def _give_up(self, engine: Engine, version: int, error: BaseException) -> None:
        if not engine.is_up:  # it is taken out already
            return
        late = isinstance(error, TimeoutError)
        what = "no answer in time" if late else last_line(error)
        reason = f"weight version {version}: {what}"
        await self._fleet.take_out(engine, reason, actor=engine.actor)

    async def _attempt(self, engines: Sequence[Engine], version: int) -> Answers:
        """Of each engine the gap of its log-probabilities of the probe, or what went wrong."""
        if self._receiving:
            await self._receiving
        if not engines:  # all are being started again, and are brought up then
            return {}
        answers = await self._fleet.pause(engines, self._settings.pause)
        if not _errors(answers):
            answers = await self._join(engines)
        if not _errors(answers):
            answers = await self._broadcast(engines, version)
        if _errors(answers):
            self._members = ()
        return answers

    async def _broadcast(self, engines: Sequence[Engine], version: int) -> Answers:
        arguments = (version, self._manifest, self._probe)
        receiving = self._fleet.ask(
            dict.fromkeys(engines, arguments),
            "receive_weights",
            timeout_s=self._deadlines.publish_s,
        )
        # Waited for even if the learners are lost: engines that still receive cannot be asked more.
        self._receiving = asyncio.create_task(receiving)
        expected, error = await self._learners.publish(self._probe_sample())
        answers = await self._receiving
        if error is not None and not _errors(answers):
            raise InfrastructureError(f"sending weight version {version}: {error}")
        return {
            engine: _mean_gap(expected, answer) if isinstance(answer, list) else answer
            for engine, answer in answers.items()
        }

    async def _join(self, engines: Sequence[Engine]) -> Answers:
        """Joins learner rank 0 and the engines into one broadcast group, if they are not."""
        members = (*self._learners.ranks, *(engine.actor for engine in engines))
        if members == self._members:
            return {}
        per_engine = self._fleet.processes_per_engine
        # Of one bucket. Less than publish_s, so that the learners do not seem to hang with an
        # engine that does.
        timeout_s = min(self._deadlines.hang_s, 0.8 * self._deadlines.publish_s)
        endpoint = await self._learners.open_rendezvous(1 + per_engine * len(engines), timeout_s)
        places = {e: (endpoint, 1 + per_engine * number) for number, e in enumerate(engines)}
        self._receiving = asyncio.create_task(
            self._fleet.ask(places, "join_transfer", timeout_s=self._deadlines.publish_s)
        )
        bucket_bytes = self._settings.bucket_mib * 2**20
        manifest, error = await self._learners.join_transfer(endpoint, bucket_bytes)
        answers = await self._receiving
        if error is not None and not _errors(answers):
            raise InfrastructureError(f"joining the weight transport: {error}")
        self._manifest, self._members = manifest, members
        return answers

    def _probe_sample(self) -> TrainSample:
        tokens = np.asarray(self._probe, dtype=np.int32)
        return TrainSample(tokens[:1], tokens[1:])

    def _prove(self, version: int, gaps: Mapping[Engine, float]) -> None:
        for engine, gap in gaps.items():
            if not gap <= self._settings.probe_tolerance:  # NaN fails too
                raise InfrastructureError(
                    f"weight version {version} did not arrive whole at rollout worker "
                    f"{engine.number}: its log-probabilities of the probe differ by {gap:.2g} on "
                    "average, more than publication.probe_tolerance "
                    f"({self._settings.probe_tolerance:g})"
                )


def _errors(answers: Answers) -> dict[Engine, BaseException]:
    return {e: answer for e, answer in answers.items() if isinstance(answer, BaseException)}


def _mean_gap(expected: Sequence[float], scored: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(expected, scored, strict=True)) / len(expected)
