"""The weight publisher: learner rank 0 to every rollout worker, proven by log-probabilities."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actors.fleet import RolloutFleet
from actors.learner_group import LearnerGroup
from actors.settings import Deadlines, PublicationSettings
from actors.transfer import Manifest
from actors.waiting import within
from judging.errors import InfrastructureError
from learning.windows import TrainSample


@dataclass(frozen=True, slots=True)
class Publication:
    version: int
    duration_s: float
    probe_gap: float  # greatest engine's mean |log-probability of the probe, learner - engine|


class WeightPublisher:
    """Life: construct, `connect`, `publish` with rising versions."""

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
        self.version = 0

    async def connect(self) -> None:
        """Joins learner rank 0 and all workers into one broadcast group."""
        per_engine = self._fleet.processes_per_engine
        engines = self._fleet.workers
        endpoint = await self._learners.open_rendezvous(1 + per_engine * len(engines))
        bucket_bytes = self._settings.bucket_mib * 2**20
        joins = [
            learner.join_transfer.remote(endpoint, bucket_bytes) for learner in self._learners.ranks
        ] + [
            worker.join_transfer.remote(endpoint, 1 + per_engine * number)
            for number, worker in enumerate(engines)
        ]
        what = "joining learners and rollout workers for the weight transport"
        joined = await within(self._deadlines.start_s, what, asyncio.gather(*joins))
        self._manifest = joined[0]

    async def publish(self) -> Publication:
        """Brings every worker to the learners' weights under the next version.

        Raises:
            InfrastructureError: not done in time, or an engine's log-probabilities of the probe
                are not the learner's.
        """
        version, started = self.version + 1, time.monotonic()
        probe = self._probe_sample()
        sends = [learner.publish.remote(probe) for learner in self._learners.ranks]
        receives = [
            worker.receive_weights.remote(version, self._manifest, self._probe)
            for worker in self._fleet.workers
        ]
        what = f"publishing weight version {version}"
        answers = await within(self._deadlines.publish_s, what, asyncio.gather(*sends, *receives))
        expected, *_ = answers
        gaps = [_mean_gap(expected, scored) for scored in answers[len(sends) :]]
        self._prove(version, gaps)
        self.version = version
        return Publication(version, time.monotonic() - started, max(gaps))

    def _probe_sample(self) -> TrainSample:
        tokens = np.asarray(self._probe, dtype=np.int32)
        return TrainSample(tokens[:1], tokens[1:])

    def _prove(self, version: int, gaps: Sequence[float]) -> None:
        for worker, gap in enumerate(gaps):
            if not gap <= self._settings.probe_tolerance:  # NaN fails too
                raise InfrastructureError(
                    f"weight version {version} did not arrive whole at rollout worker {worker}: "
                    f"its log-probabilities of the probe differ by {gap:.2g} on average, more "
                    f"than publication.probe_tolerance ({self._settings.probe_tolerance:g})"
                )


def _mean_gap(expected: Sequence[float], scored: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(expected, scored, strict=True)) / len(expected)
