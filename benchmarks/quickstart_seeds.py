"""The quickstart with several seeds: does each phase make the judge better, and at what cost?

    python benchmarks/quickstart_seeds.py [--seeds 14 15 16] [--runs DIR] [--json FILE]

A seed decides the problems, the model's first weights and everything that is drawn while training.
Seeds 0 to 13 served to choose the task, its rates and its steps, and are no measurement
of them.
Each run is one `gavel run configs/quickstart.yaml`; a run that is there already is not repeated.
Prints one row a seed as JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"


def run(seed: int, runs: Path) -> dict[str, Any]:
    """One row: accuracies, shares and costs of the run with this seed."""
    directory = runs / f"quickstart-seed-{seed}"
    if not (directory / "summary.json").exists():
        overrides = [
            f"run.seed={seed}",
            f"model.make.seed={seed}",
            f"data.generate.seed={seed}",
            f"run.id={directory.name}",
            f"run.dir={runs}",
            "output.samples=0",
        ]
        subprocess.run(
            [sys.executable, "-m", "orchestrator", "run", str(CONFIG), *overrides], check=True
        )
    return row(seed, directory)


def row(seed: int, directory: Path) -> dict[str, Any]:
    summary = json.loads((directory / "summary.json").read_text())
    accuracy = {e["phase"]: round(e["accuracy"], 3) for e in summary["evaluations"]}
    last = summary["evaluations"][-1]
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    steps = [line for line in lines if line["phase"] == "reinforce" and "kl" in line]
    return {
        "seed": seed,
        "accuracy": accuracy,
        "gain_of_rl": round(accuracy["reinforce"] - accuracy["distill"], 3),
        "parseable": round(last["parseable"], 4),
        "flip_rate": {e["phase"]: e["flip_rate"] for e in summary["evaluations"]},
        "wall_s": round(summary["wall_s"]),
        "peak_memory_gb": round(summary["peak_rss_bytes"] / 1e9, 2),
        "largest_logprob_gap": max(step["logprob_gap"] for step in steps),
        "step_s": round(median(step["time/step_s"] for step in steps), 2),
        "other_share": round(median(s["time/other_s"] / s["time/step_s"] for s in steps), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[14, 15, 16])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs go")
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    text = json.dumps([run(seed, options.runs) for seed in options.seeds], indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
