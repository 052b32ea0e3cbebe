"""A teacher's likeliest tokens at each place of the traces, for `distill.logits`.

They are asked of engines before the phase needs them, and kept in the run's directory until it has
ended: a run that is taken up asks for what is missing alone. Committed steps need none of it, since
their batches hold the numbers.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from actors.fleet import RolloutFleet
from learning.settings import LogitSettings
from learning.windows import TopTokens, TrainSample
from orchestrator.disk import atomic_writer, writing
from orchestrator.eval_engines import requests_in_flight
from orchestrator.material import Demonstration, load_tokenizer
from orchestrator.recovery import on_learners
from orchestrator.run import Run

POLICY = "policy"  # as a teacher: the weights that the phase begins with


@dataclass(slots=True)
class Lessons:
    """What a teacher said of traces, in files of a folder."""

    folder: Path
    _where: dict[bytes, tuple[Path, int, int]] = field(default_factory=dict)  # file, first, end

    def __post_init__(self) -> None:
        for path in sorted(self.folder.glob("*.safetensors")):
            self._know(path)

    def lacks(self, sample: TrainSample) -> bool:
        return _key(sample) not in self._where

    def taught(self, sample: TrainSample) -> TrainSample:
        """The sample with what the teacher said of it. Raises KeyError if that is not here."""
        from safetensors import safe_open

        path, first, end = self._where[_key(sample)]
        with safe_open(path, framework="np") as file:
            parts = (file.get_slice(name)[first:end] for name in ("ids", "logprobs"))
            return replace(sample, teacher=TopTokens(*parts))

    def add(self, samples: Sequence[TrainSample], tops: Sequence[TopTokens]) -> None:
        """Keeps what the teacher said of `samples`. Raises InfrastructureError if the disk does not
        take it."""
        from safetensors.numpy import save

        keys = b"".join(_key(sample) for sample in samples)
        data = save(
            {
                "keys": np.frombuffer(keys, np.uint8).reshape(len(samples), -1),
                "lengths": np.array([len(top.ids) for top in tops], np.int64),
                "ids": np.concatenate([top.ids for top in tops]),
                "logprobs": np.concatenate([top.logprobs for top in tops]),
            }
        )
        path = self.folder / f"{hashlib.sha256(keys).hexdigest()[:16]}.safetensors"
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path, "wb") as file:
            file.write(data)
        self._know(path)

    def _know(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                keys, lengths = file.get_tensor("keys"), file.get_tensor("lengths")
        except (OSError, SafetensorError):  # spoilt: it is asked for again
            return
        ends = np.cumsum(lengths).tolist()
        for key, length, end in zip(keys, lengths.tolist(), ends, strict=True):
            self._where[key.tobytes()] = (path, end - length, end)


def _key(sample: TrainSample) -> bytes:
    tokens = np.concatenate([[len(sample.prompt_ids)], sample.prompt_ids, sample.completion_ids])
    return hashlib.sha256(tokens.astype("<i8").tobytes()).digest()


async def ask_teacher(
    run: Run, index: int, settings: LogitSettings, traces: Sequence[Demonstration], *, done: int
) -> Callable[[TrainSample], TrainSample]:
    """What adds the teacher's numbers to a sample of `traces`; the engines are asked for those that
    the run's directory lacks. `done` steps of the phase were taken before.

    Raises:
        AskedToStop: the run is to end; what was answered is kept.
    """
    lessons = Lessons(run.directory.teacher(index))
    missing = [trace for trace in traces if lessons.lacks(trace.sample)]
    if missing:
        k, teacher = settings.top_k, settings.teacher
        run.telemetry.say(
            f"asking the teacher ({teacher}) for its {k} likeliest tokens at each place of "
            f"{len(missing):,} traces"
        )
        async with _engines(run, teacher, done=done) as fleet:
            await _ask(run, fleet, lessons, missing, k)
        await run.directory.in_background(run.directory.mirror, run.telemetry.say)
    return lessons.taught


async def _ask(
    run: Run, fleet: RolloutFleet, lessons: Lessons, traces: Sequence[Demonstration], k: int
) -> None:
    tokenizer = await asyncio.to_thread(load_tokenizer, run.config, run.material.model_path)
    known = 1 + max(tokenizer.get_vocab().values())
    for part in _parts(traces, max(64, requests_in_flight(run.config.rollout))):
        answers = (fleet.top_tokens(trace.pair_uid, trace.sample, k) for trace in part)
        tops = await run.stop.while_waited_for(asyncio.gather(*answers))
        lessons.add([trace.sample for trace in part], [_within(top, known) for top in tops])
        run.telemetry.vitals.sign()


def _within(top: TopTokens, known: int) -> TopTokens:
    """Without the ids that only fill the teacher's embedding up: the student may have fewer."""
    is_known = top.ids < known
    ids = np.where(is_known, top.ids, 0).astype(np.int32)
    return TopTokens(ids, np.where(is_known, top.logprobs, -np.inf).astype(np.float32))


def _parts(traces: Sequence[Demonstration], size: int) -> Iterator[Sequence[Demonstration]]:
    for start in range(0, len(traces), size):
        yield traces[start : start + size]


@asynccontextmanager
async def _engines(run: Run, teacher: str, *, done: int) -> AsyncIterator[RolloutFleet]:
    """Engines with the teacher's weights: the run's own where they have them, else others that
    stand in their places meanwhile."""
    if teacher == POLICY and not done:
        yield run.fleet
        return
    path = teacher if teacher != POLICY else run.checkpoint or run.material.model_path
    await run.fleet.stop()
    fleet = run.fleet.of_model(path)
    try:
        await fleet.start()
        yield fleet
    finally:
        await fleet.stop()
    await run.fleet.start()
    if run.publisher.version:  # else the model's own weights are current
        run.publisher.version -= 1
        await on_learners(run, run.publisher.publish)
