"""What the death of a rollout worker costs the others, with real engines.

    python benchmarks/worker_loss.py [--workers 3] [--kills 5] [--json FILE]

Keeps 12 requests of 4 samples in flight on a fleet of vLLM engines with the quickstart's untrained
model, and kills (SIGKILL) one worker's actor process 20 to 30 s after the last one came back.
Prints of each kill

    idle_before_s  the longest time for which another worker made no iteration in the 10 s before
                   it: what the machine does by itself
    idle_after_s   the same in the 10 s after it; a time that began before the kill counts in full
    handed_over_s  from the kill until all requests that were on the worker are handed to others
    works_again_s  from the kill until the worker takes work again; it has no weights to wait for

and the number of requests that were handed over, and of those that the fleet answered and that
failed until the worker was back. Iterations are seen by a heartbeat every 50 ms, so idle times are
upper bounds. Each request must have been answered exactly once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from actors.engine import Engine
from actors.fleet import RolloutFleet
from actors.placement import Placement
from actors.rollout import EngineSpec, GenerationRequest
from actors.settings import Deadlines, PlacementSettings
from actors.waiting import within
from judging.errors import InfrastructureError
from judging.records import Rollout
from learning.settings import LearnerSettings
from orchestrator.cluster import ray_cluster
from orchestrator.config_loading import load_config
from orchestrator.material import prepare

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
IN_FLIGHT, SAMPLES, NEW_TOKENS = 12, 4, 300
PAUSE_S, WINDOW_S, POLL_S, LONGEST_S = (20.0, 30.0), 10.0, 0.05, 600.0
SECONDS = ("idle_before_s", "idle_after_s", "handed_over_s", "works_again_s")
COUNTS = ("requests", "answered", "failed")


class LoadedFleet(RolloutFleet):
    """With requests at all times; notes what becomes of each."""

    def __init__(self, spec: EngineSpec, prompts: Sequence[tuple[int, ...]]) -> None:
        deadlines = Deadlines()
        placement = Placement(PlacementSettings(), LearnerSettings(), spec.settings, deadlines)
        super().__init__(spec, deadlines, placement, tell=lambda text: print(text, file=sys.stderr))
        self.bring_up = lambda engine: self.has_weights(engine, engine.actor)
        self._prompts, self._asked, self.is_over = prompts, 0, False
        self._holders: dict[str, int] = {}
        self.handed_over: list[tuple[int, float]] = []  # of a request: who lost it, and when
        self.answered: Counter[str] = Counter()  # samples
        self.failures: list[str] = []

    async def load(self) -> None:
        """Asks until it `is_over`."""
        await asyncio.gather(*(self._one_after_another() for _ in range(IN_FLIGHT)))

    async def _one_after_another(self) -> None:
        while not self.is_over:
            number, self._asked = self._asked, self._asked + 1
            prompt, seed = self._prompts[number % len(self._prompts)], number * SAMPLES
            request = GenerationRequest(f"{number}", prompt, SAMPLES, seed, 1.0, NEW_TOKENS)
            try:
                rollouts = await self.generate(request)
            except InfrastructureError as error:
                self.failures.append(str(error))
            else:
                self.answered.update(rollout.presentation_uid for rollout in rollouts)

    async def _ask(self, engine: Engine, request: GenerationRequest) -> list[Rollout]:
        uid = request.presentation_uid
        if uid in self._holders:
            self.handed_over.append((self._holders[uid], time.monotonic()))
        self._holders[uid] = engine.number
        rollouts = await super()._ask(engine, request)
        del self._holders[uid]
        return rollouts

    def check(self) -> None:
        if self.failures:
            raise SystemExit(f"{len(self.failures)} requests failed, first: {self.failures[0]}")
        if dict(self.answered) != {f"{number}": SAMPLES for number in range(self._asked)}:
            raise SystemExit("not each request was answered exactly once")


async def watch(engine: Engine, signs: list[float]) -> None:
    """Adds to `signs` the time whenever the engine was seen to have made iterations."""
    from ray.exceptions import RayError

    actor, last = None, 0
    while True:
        await asyncio.sleep(POLL_S)
        if engine.actor is not actor:
            actor, last = engine.actor, 0
        if actor is None or not engine.health.takes_work:
            continue
        try:
            progress = await asyncio.wait_for(actor.progress.remote(), WINDOW_S)
        except (RayError, TimeoutError):
            continue
        if progress > last:
            signs.append(time.monotonic())
            last = progress


def longest_gap_s(signs: Sequence[float], begin_s: float, end_s: float) -> float:
    """The longest time without a sign that reaches into the window, up to its end."""
    marks = [*(sign for sign in signs if sign < end_s), end_s]
    return max(after - before for before, after in pairwise(marks) if after > begin_s)


async def way_back(engine: Engine) -> None:
    """Until it is noticed as dead, and then takes work again."""
    for takes_work in (False, True):
        while engine.health.takes_work is not takes_work:
            await asyncio.sleep(0.01)


async def kill(fleet: LoadedFleet, victim: Engine, others: list[list[float]]) -> dict[str, float]:
    """What its death cost; `others` are the signs of the other workers."""
    process = await victim.actor.__ray_call__.remote(lambda _: os.getpid())
    answered, failed = fleet.answered.total(), len(fleet.failures)
    killed_s = time.monotonic()
    os.kill(process, signal.SIGKILL)
    await within(LONGEST_S, "the killed worker's way back", way_back(victim))
    back_s = time.monotonic()
    answered = fleet.answered.total() - answered
    await asyncio.sleep(killed_s + WINDOW_S - back_s)
    moves = [s for loser, s in fleet.handed_over if loser == victim.number and s > killed_s]
    begin_s, end_s = killed_s - WINDOW_S, killed_s + WINDOW_S
    seconds = (
        max(longest_gap_s(signs, begin_s, killed_s) for signs in others),
        max(longest_gap_s(signs, killed_s, end_s) for signs in others),
        max(moves, default=killed_s) - killed_s,
        back_s - killed_s,
    )
    counts = len(moves), answered // SAMPLES, len(fleet.failures) - failed
    return dict(zip((*SECONDS, *COUNTS), (*seconds, *counts), strict=True))


async def measure(fleet: LoadedFleet, kills: int) -> list[dict[str, float]]:
    """One row a kill."""
    chance = random.Random(1)
    await fleet.start()
    signs: list[list[float]] = [[] for _ in fleet.engines]
    works = [watch(engine, its) for engine, its in zip(fleet.engines, signs, strict=True)]
    loading, *watching = map(asyncio.create_task, (fleet.load(), *works))
    rows: list[dict[str, float]] = []
    try:
        for number in range(kills):
            await asyncio.sleep(chance.uniform(*PAUSE_S))
            victim = fleet.engines[number % len(signs)]
            others = [its for other, its in enumerate(signs) if other != victim.number]
            rows.append(await kill(fleet, victim, others))
        fleet.is_over = True
        await within(LONGEST_S, "the last requests", loading)
    finally:
        for task in (loading, *watching):
            task.cancel()
        await fleet.stop()
    return rows


def show(name: str, row: dict[str, float]) -> None:
    seconds = "  ".join(f"{row[key]:13.2f}" for key in SECONDS)
    counts = "  ".join(f"{row[key]:8}" for key in COUNTS if key in row)
    print(f"{name:>6}  {seconds}  {counts}".rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    if options.workers < 2 or "RAY_ADDRESS" in os.environ:
        parser.error("it takes two workers or more, on this machine: RAY_ADDRESS must not be set")
    settings = (
        "phases=[evaluate]",
        "data.generate.heldout_pairs=64",
        f"rollout.max_new_tokens={NEW_TOKENS}",
        f"rollout.workers={options.workers}",
        f"rollout.max_restarts={options.kills}",
    )
    config = load_config(CONFIG, settings)
    with tempfile.TemporaryDirectory(prefix="gavel-bench-") as folder:
        material = prepare(config, Path(folder))
        prompts = [it.token_ids for both in material.heldout for it in both.by_order.values()]
        model, tokens = material.model_path, config.context_tokens
        fleet = LoadedFleet(EngineSpec(model, config.model.dtype, tokens, config.rollout), prompts)
        with ray_cluster(max(os.cpu_count() or 1, options.workers)):
            rows = asyncio.run(measure(fleet, options.kills))
    print("  kill", *(f"{key:>13}" for key in SECONDS), *COUNTS, sep="  ")
    for number, row in enumerate(rows, start=1):
        show(f"{number}", row)
    for name, of in (("median", median), ("worst", max)):
        show(name, {key: of(row[key] for row in rows) for key in SECONDS})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    fleet.check()


if __name__ == "__main__":
    main()
