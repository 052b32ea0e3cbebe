"""vLLM's engines: how far do two runs of one seed agree, and what does generating ahead gain?

    python benchmarks/real_engines.py [--steps 40] [--seed 17] [--runs DIR] [--json FILE]

The quickstart is distilled once and reinforced four times from that checkpoint, with one seed: a
and b with `reinforce.max_staleness` 0, c and d with 1, in the order a c b d, so that a machine that
gets faster or slower favours neither. A run that is there already is not repeated.
Prints as JSON how far the runs of either kind agree, the seconds from commit to commit of each,
and how many times as fast generating ahead is. All but vLLM is deterministic (benchmarks/chaos.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from learning.batches import load_batches
from learning.windows import TrainSample
from orchestrator import driver
from orchestrator.config_loading import load_config
from orchestrator.journal import RunJournal
from orchestrator.rundir import RunDirectory
from orchestrator.store import open_store

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
MAX_STALENESS = {"a": 0, "c": 1, "b": 0, "d": 1}  # of each run, in the order of running
SHOWN_STEPS = 10  # whose shares are printed one by one


def run(runs: Path, name: str, seed: int, *overrides: str) -> RunDirectory:
    """The run's directory, once it is done."""
    directory = RunDirectory(runs / f"{name}-seed-{seed}")
    summary = directory.read_summary()
    if summary is None or summary["status"] != "done":
        seeds = (f"run.seed={seed}", f"data.generate.seed={seed}")
        place = (f"run.dir={runs}", f"run.id={directory.run_id}")
        plain = ("output.samples=0", "output.tensorboard=false")
        config = load_config(CONFIG, [*seeds, *place, *plain, *overrides])
        with patch.object(RunDirectory, "drop_batches"):  # keeps those before the first checkpoint
            driver.run(config)
    return directory


def reinforce(runs: Path, seed: int, steps: int) -> dict[str, RunDirectory]:
    """The four runs, by name."""
    distilled = run(runs, "distilled", seed, f"model.make.seed={seed}", "phases=[distill]")
    shared = (
        "phases=[reinforce]",
        "model.make=null",
        f"model.path={last_checkpoint(distilled)}",
        f"reinforce.max_steps={steps}",
    )
    done: dict[str, RunDirectory] = {}
    for name, staleness in MAX_STALENESS.items():
        own = f"reinforce.max_staleness={staleness}"
        done[name] = run(runs, f"{name}-steps-{steps}", seed, *shared, own)
    return done


def last_checkpoint(directory: RunDirectory) -> Path:
    return max(directory.checkpoints.glob("step-*"))


def agreement(one: RunDirectory, other: RunDirectory) -> dict[str, Any]:
    """Sample by sample, of runs that have the same prompts in each step."""
    both = zip(samples(one), samples(other), strict=True)
    steps = [list(zip(*step, strict=True)) for step in both]
    differing = [[differ(*pair) for pair in pairs] for pairs in steps]
    first = next((number for number, flags in enumerate(differing) if any(flags)), None)
    gaps = [float(gap(*pair).max()) for pair in steps[0] if not differ(*pair)]
    weights, others = (load_file(last_checkpoint(d) / "model.safetensors") for d in (one, other))
    return {
        "first_differing_step": None if first is None else first + 1,
        "first_difference": None if first is None else first_difference(steps[first]),
        "differing_samples": [fmean(flags) for flags in differing[:SHOWN_STEPS]],  # shares
        "step_1_max_logprob_difference": max(gaps, default=None),
        "step_1_samples_with_other_logprobs": sum(number > 0 for number in gaps),
        "max_weight_difference": max(float(abs(weights[n] - others[n]).max()) for n in weights),
    }


def samples(directory: RunDirectory) -> list[list[TrainSample]]:
    """Those of each step, in the order of the data."""
    with open_store(None, directory.path) as store:
        commits = RunJournal(store.client, directory.run_id).commits(phase=0)
    batches = [load_batches(directory.read_batch(str(commit.batch_hash))) for commit in commits]
    return [[sample for batch in step for sample in batch] for step in batches]


def differ(one: TrainSample, other: TrainSample) -> bool:
    """Whether the completions of one prompt do."""
    if not np.array_equal(one.prompt_ids, other.prompt_ids):
        raise SystemExit("the runs trained on other prompts, and cannot be compared")
    return not np.array_equal(one.completion_ids, other.completion_ids)


def gap(one: TrainSample, other: TrainSample) -> NDArray[np.float32]:
    """Between the engines' log-probabilities, as far as both completions go."""
    length = min(len(one.completion_ids), len(other.completion_ids))
    mine, its = np.asarray(one.rollout_logprobs), np.asarray(other.rollout_logprobs)
    return abs(mine[:length] - its[:length])


def first_difference(pairs: Sequence[tuple[TrainSample, TrainSample]]) -> dict[str, float]:
    """Of a step's samples the first that differs, and its first other token; both from 0."""
    number, (one, other) = next((n, pair) for n, pair in enumerate(pairs) if differ(*pair))
    equal = [x == y for x, y in zip(one.completion_ids, other.completion_ids, strict=False)]
    token = [*equal, False].index(False)
    before = float(gap(one, other)[:token].max(initial=0.0))
    return {"sample": number, "token": token, "max_logprob_difference_before": before}


def pace(directory: RunDirectory) -> dict[str, float]:
    """Seconds: medians of all steps but the first, whose beginning no commit tells."""
    rows, _ = directory.read_measurements()
    found = {
        "step_s": median(row.at_s - before.at_s for before, row in pairwise(rows)),
        "wait_s": median(row.metrics["time/wait_s"] for row in rows[1:]),
        "train_s": median(row.metrics["time/train_s"] for row in rows[1:]),
        "staleness_mean": fmean(row.metrics["staleness"] for row in rows),
        "staleness_max": max(row.metrics["staleness_max"] for row in rows),
        "mixed_versions": fmean(row.metrics["mixed_versions"] for row in rows),
    }
    return {name: round(number, 3) for name, number in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40, help="of reinforcement")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--runs", type=Path, default=Path("runs/real"), help="where the runs go")
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    done = reinforce(options.runs.resolve(), options.seed, options.steps)
    paces = {name: pace(directory) for name, directory in done.items()}
    a, b, c, d = (paces[name]["step_s"] for name in "abcd")
    result = {
        "synchronous_a_b": agreement(done["a"], done["b"]),
        "asynchronous_c_d": agreement(done["c"], done["d"]),
        "pace": paces,
        "times_as_fast": round((a + b) / (c + d), 3),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
