"""What the driver alone can do: the real phase, on engines and learners that cost nothing.

    python benchmarks/driver_throughput.py [--steps 30] [--long-steps 100000] [--json FILE]

Prints three things: samples a second with 1,000 engines and 10,000 samples in flight, with the real
journal (a private Redis that syncs each write) and all files; what the driver's own work costs with
10 to 10,000 engines; and its memory over many small steps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import virtual_clock
from simulated_run import PhaseOver, Records, SimulatedFleet, simulated_run

from orchestrator.journal import RunJournal
from orchestrator.reinforce import reinforce
from orchestrator.run import Run
from orchestrator.rundir import RunDirectory
from orchestrator.store import open_store
from orchestrator.telemetry import Telemetry

TOKENS, GROUP = 200, 8
IN_FLIGHT = 10_240


def tree(steps: int, prompts: int) -> dict[str, Any]:
    return {
        "model": {"path": "none"},
        "data": {"path": "none"},
        "phases": ["reinforce"],
        "checkpoint": {"every_steps": None},
        "reinforce": {
            "max_steps": steps,
            "epochs": 1e9,
            "prompts_per_step": prompts,
            "mini_batch_prompts": prompts,
            "group_size": GROUP,
            "max_staleness": 1,
        },
    }


def length(_: random.Random) -> int:
    return TOKENS


async def steps_of(run: Run) -> None:
    (phase,) = run.config.phases
    with suppress(PhaseOver):
        await reinforce(run, 0, phase)  # type: ignore[arg-type]


def with_everything(steps: int) -> float:
    """Samples a second, down to the disk."""
    prompts = IN_FLIGHT // GROUP // 2
    fleet = SimulatedFleet(engines=1000, slots=IN_FLIGHT, token_s=0.0, length=length)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        directory = RunDirectory.open(Path(folder), "driver")
        store = stack.enter_context(open_store(None, directory.path))
        journal = RunJournal(store.client, "driver")
        journal.begin_run("", {}, seed=1)
        telemetry = stack.enter_context(Telemetry(directory, samples=0, progress="quiet"))
        parts = {"directory": directory, "journal": journal, "telemetry": telemetry}
        run = simulated_run(tree(steps, prompts), fleet, 0.0, **parts)
        began = time.perf_counter()
        asyncio.run(steps_of(run))
        return steps * prompts * GROUP / (time.perf_counter() - began)


def by_engines(engines: int, steps: int) -> float:
    """Microseconds of the driver for each sample, on a virtual clock, without a disk."""
    prompts = IN_FLIGHT // GROUP // 2
    fleet = SimulatedFleet(engines, slots=IN_FLIGHT, token_s=0.001, length=length)
    began = time.perf_counter()
    virtual_clock.run(_recorded(tree(steps, prompts), fleet))
    return 1e6 * (time.perf_counter() - began) / (steps * prompts * GROUP)


def memory(steps: int) -> list[tuple[int, float]]:
    """(step, MiB) at ten places of a run of small steps."""
    fleet = SimulatedFleet(engines=8, slots=64, token_s=0.001, length=lambda _: 8)
    found: list[tuple[int, float]] = []
    process = psutil.Process()

    def look(step: int) -> None:
        if step % max(1, steps // 10) == 0:
            found.append((step, process.memory_info().rss / 2**20))

    virtual_clock.run(_recorded(tree(steps, 2), fleet, look))
    return found


async def _recorded(settings: dict[str, Any], fleet: SimulatedFleet, look: Any = None) -> None:
    records = Records(asyncio.get_running_loop().time)
    settings["checkpoint"]["open_work_every_s"] = 1e9  # there is no disk
    if look is not None:
        records.step = lambda step, _: look(step)  # type: ignore[method-assign]
    parts = dict.fromkeys(("directory", "journal", "telemetry"), records)
    await steps_of(simulated_run(settings, fleet, 0.001, **parts))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--long-steps", type=int, default=100_000)
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    result: dict[str, Any] = {"samples_per_s": round(with_everything(options.steps))}
    print(f"1,000 engines, {IN_FLIGHT:,} in flight: {result['samples_per_s']:,} samples/s")
    result["us_per_sample"] = {
        engines: round(by_engines(engines, 4), 1) for engines in (10, 100, 1000, 10_000)
    }
    for engines, cost in result["us_per_sample"].items():
        print(f"{engines:>7,} engines: {cost} us of the driver for each sample")
    result["rss_mib"] = memory(options.long_steps)
    for step, mib in result["rss_mib"]:
        print(f"step {step:>7,}: {mib:.0f} MiB")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
