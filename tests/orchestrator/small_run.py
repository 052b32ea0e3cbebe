"""A run of one distillation by the real code of phases and resumption, without Ray and engines.

Its learners are stand-ins: the weights are a digest of all batches that were trained on, in order.
"""

import asyncio
import hashlib
import json
import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
from run_samples import trace_record

from actors.urls import is_url, local_copy, push
from learning.batches import dump_batches
from learning.windows import TrainSample
from orchestrator import commits
from orchestrator.config_loading import load_config
from orchestrator.journal import RunJournal
from orchestrator.measurements import StepRow
from orchestrator.recovery import begin_on_learners, write_again
from orchestrator.resume import find_position, settle
from orchestrator.rundir import RunDirectory
from orchestrator.vitals import Vitals

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
KINDS = ["evaluate", "distill", "evaluate", "reinforce", "evaluate"]  # as in the quickstart
PHASE, STEPS, EVERY, KEEP = 1, 7, 2, 2


class Learners:
    """Stands in for `LearnerGroup`."""

    def __init__(self, place=None):
        folder = Path(local_copy(place)) if place else None
        self.weights = (folder / "model.safetensors").read_text() if folder else "base"
        self.taken = []  # steps, by their batches

    async def begin_distill(self, settings, total_steps):
        assert total_steps == STEPS

    async def resume(self, place):
        folder = Path(local_copy(place, trainer=True))
        assert json.loads((folder / "trainer" / "state.json").read_text()) == self.weights

    async def distill_step(self, samples):
        self.taken.append(int(samples[0].prompt_ids[0]))
        data = self.weights.encode() + dump_batches([samples])
        self.weights = hashlib.sha256(data).hexdigest()
        return {"loss": 1.0}

    async def save(self, place):
        if not is_url(place):
            return self._save(place)
        with TemporaryDirectory() as folder:
            self._save(Path(folder))
            return push(Path(folder), place)

    def _save(self, folder):
        (folder / "model.safetensors").write_text(self.weights)
        (folder / "trainer").mkdir()
        (folder / "trainer" / "state.json").write_text(json.dumps(self.weights))


async def publish():
    return None


def samples(step: int) -> list[TrainSample]:
    ids = np.array([step, 5], np.int32)
    return [TrainSample(prompt_ids=ids, completion_ids=ids, advantage=1.0, rollout_logprobs=None)]


def open_journal(client) -> RunJournal:
    journal = RunJournal(client, "run-1")
    if not journal.is_begun:
        journal.begin_run("model: tiny\n", {}, 7)
        journal.end_phase(0, 0)
        journal.begin_phase(PHASE, "distill", STEPS)
    return journal


class Driver:
    """One driver's life: it takes the run up, and runs the phase."""

    def __init__(self, client, directory: RunDirectory):
        self.journal, self.directory = open_journal(client), directory
        self.position = find_position(self.journal, KINDS, directory)
        self.told = settle(directory, self.journal, KINDS, self.position)
        self.learners = Learners()

    def run(self, steps: int = STEPS) -> None:
        """Up to a step, and to the phase's end if it is the last one."""
        asyncio.run(self._run(steps))

    async def _run(self, steps):
        for lost in self.position.rebuilds:
            await self._write_again(lost)
        weights = self.position.weights
        self.learners = Learners(self.directory.place(weights) if weights else None)
        if self.position.phase != PHASE:
            return
        run = self._parts()
        done = await begin_on_learners(run, PHASE, self._begin)
        await self.between_steps(run, done)
        for step in range(done + 1, steps + 1):
            batch = samples(step)
            metrics = await self.learners.distill_step(batch)
            self.directory.write_traces(PHASE, "distill", step, [trace_record(step)])
            await commits.commit_step(
                run,
                PHASE,
                "distill",
                step,
                uids=[f"pair{step}"],
                drawn=step,
                metrics=metrics,
                batches=[batch],
            )
            self.directory.append_step(StepRow("distill", PHASE, STEPS, step, 1.0, metrics))
            await self.between_steps(run, step)
        if steps == STEPS:
            await commits.end_training(run, PHASE, "distill", STEPS)

    async def between_steps(self, run, step):
        """After a step, and where the run is taken up."""

    async def _begin(self):
        await self.learners.begin_distill(None, STEPS)

    def _parts(self):
        checkpoint = SimpleNamespace(every_steps=EVERY, keep=KEEP)
        return SimpleNamespace(
            config=SimpleNamespace(checkpoint=checkpoint),
            directory=self.directory,
            journal=self.journal,
            learners=self.learners,
            position=self.position,
            publisher=SimpleNamespace(version=0, publish=publish, updating=asyncio.Lock),
            telemetry=SimpleNamespace(say=self.told.append, vitals=Vitals("small")),
            stop=SimpleNamespace(check=lambda: None),
            steps=0,
        )

    async def _write_again(self, lost):
        learners = Learners(self.directory.place(lost.weights) if lost.weights else None)
        config = load_config(QUICKSTART)
        telemetry = SimpleNamespace(say=self.told.append, vitals=Vitals("small"))
        parts = (self.directory, self.journal, telemetry, lost)
        await write_again(learners, config, SimpleNamespace(model_path="base"), *parts)


def dies(act, owner, name: str, when: str, nth: int = 1) -> bool:
    """Whether a child process that does `act` came to the n-th call of `owner.name`.

    There it is ended by SIGKILL, before the call or after it.
    """
    child = os.fork()
    if child == 0:
        try:
            _kill_at(owner, name, when, nth)
            act()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def _kill_at(owner, name, when, nth):
    real, calls = getattr(owner, name), []

    def die(*arguments, **options):
        calls.append(name)
        if len(calls) < nth:
            return real(*arguments, **options)
        if when == "after":
            real(*arguments, **options)
        return os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, die)
