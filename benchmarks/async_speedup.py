"""How much faster is asynchronous training, by the real driver's code on a virtual clock?

    python benchmarks/async_speedup.py [--json FILE]

The engines are simulated: a sample takes as long as its tokens, one in ten is eight times longer,
and an engine writes so many at a time. The learners take as long as a step's mean generation.
Prints steps an hour for each bound on staleness, with what the samples' ages were.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from contextlib import suppress
from pathlib import Path
from statistics import fmean

import virtual_clock
from simulated_run import PhaseOver, Records, SimulatedFleet, simulated_run

from orchestrator.reinforce import reinforce

TOKEN_S, TOKENS, LONG_SHARE, LONG_FACTOR = 0.02, 100, 0.1, 8
STEP_S = 4.0
STEPS, PROMPTS, GROUP = 60, 64, 8


def length(chance: random.Random) -> int:
    return TOKENS * (LONG_FACTOR if chance.random() < LONG_SHARE else 1)


def simulate(max_staleness: int, slots: int) -> dict[str, float]:
    async def work() -> Records:
        records = Records(asyncio.get_running_loop().time)
        tree = {
            "model": {"path": "none"},
            "data": {"path": "none"},
            "phases": ["reinforce"],
            "checkpoint": {"every_steps": None, "open_work_every_s": 1e9},  # there is no disk
            "reinforce": {
                "max_steps": STEPS,
                "epochs": 1000,
                "prompts_per_step": PROMPTS,
                "mini_batch_prompts": PROMPTS,
                "group_size": GROUP,
                "max_staleness": max_staleness,
            },
        }
        fleet = SimulatedFleet(engines=4, slots=slots, token_s=TOKEN_S, length=length)
        parts = dict.fromkeys(("directory", "journal", "telemetry"), records)
        run = simulated_run(tree, fleet, STEP_S, **parts)
        (phase,) = run.config.phases
        with suppress(PhaseOver):
            await reinforce(run, 0, phase)  # type: ignore[arg-type]
        return records

    records = virtual_clock.run(work())
    warm = STEPS // 6
    seconds = records.ended_at_s[-1] - records.ended_at_s[warm - 1]
    steps = records.steps[warm:]
    return {
        "max_staleness": max_staleness,
        "slots": slots,
        "steps_per_hour": 3600 * len(steps) / seconds,
        "staleness": fmean(step["staleness"] for step in steps),
        "staleness_max": max(step["staleness_max"] for step in steps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    rows: list[dict[str, float]] = []
    print("slots of an engine  max_staleness  steps/hour  against 0  mean age  greatest age")
    for slots in (PROMPTS * GROUP // 4, PROMPTS * GROUP // 16):
        for max_staleness in (0, 1, 2, 4):
            row = simulate(max_staleness, slots)
            rows.append(row)
            base = next(r for r in rows if r["slots"] == slots)["steps_per_hour"]
            row["speedup"] = row["steps_per_hour"] / base
            print(
                f"{slots:18}  {max_staleness:13}  {row['steps_per_hour']:10.0f}  "
                f"{row['speedup']:9.2f}  {row['staleness']:8.2f}  {row['staleness_max']:12.0f}"
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
