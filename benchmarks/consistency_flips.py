"""Does the consistency reward lower the flip rate, other things equal?

    python benchmarks/consistency_flips.py [--seeds 14 15 16] [--steps 50] [--pairs 512]
        [--runs DIR]

For each seed the quickstart is distilled once; from that checkpoint it is reinforced with both
orders of every pair, by the verdict alone and by the verdict and consistency in equal parts. A run
that is there already is not repeated. Prints one row a seed as JSON: accuracy and flip rate on the
held-out pairs, at the start and after each run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import seeded_runs

MIXES = {
    "verdict": [],
    "verdict and consistency": ["reward.mix.consistency={uses: 'builtin:consistency'}"],
}


def row(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    runs, pairs = options.runs, f"data.generate.heldout_pairs={options.pairs}"
    own = (f"data.generate.seed={seed}", pairs)
    made = (f"model.make.seed={seed}", "phases=[distill, evaluate]")
    distilled = seeded_runs.run("distilled", seed, runs, *own, *made)
    reinforced = {
        name: seeded_runs.run(
            name,
            seed,
            runs,
            "phases=[reinforce, evaluate]",
            "model.make=null",
            f"model.path={seeded_runs.checkpoint(distilled)}",
            "reward.order=both",
            f"reinforce.max_steps={options.steps}",
            *own,
            *mix,
        )
        for name, mix in MIXES.items()
    }
    return {"seed": seed, "steps": options.steps} | {
        name: result(directory)
        for name, directory in ({"distilled": distilled} | reinforced).items()
    }


def result(directory: Path) -> dict[str, float]:
    last = json.loads((directory / "summary.json").read_text())["evaluations"][-1]
    return {key: round(last[key], 3) for key in ("accuracy", "flip_rate")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[14, 15, 16])
    parser.add_argument("--steps", type=int, default=50, help="of reinforcement")
    parser.add_argument("--pairs", type=int, default=512, help="held out, to be judged at the end")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs go")
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    text = json.dumps([row(seed, options) for seed in options.seeds], indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
