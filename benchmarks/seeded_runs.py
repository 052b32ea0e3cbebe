"""What benchmarks of several seeds have in common: a run for each arm, its figures, a plot of all.

An arm's figures are those of its last evaluation, with what was trained on to get there. A run that
is there already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from evaluation.page import COLOURS, SOFT, new_figure, svg

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
RUN_TIMEOUT_S = 3600.0


def arguments(doc: str | None, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """What each of these benchmarks can be told."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs go")
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--plot", type=Path, help="draw all seeds into this SVG file")
    return parser


def run(name: str, seed: int, runs: Path, *overrides: str) -> Path:
    """The directory of the quickstart's run with these overrides, once it is done."""
    directory = runs / f"{name.replace(' ', '-')}-seed-{seed}"
    if not is_done(directory):
        own = (f"run.seed={seed}", f"run.id={directory.name}", f"run.dir={runs}")
        command = (sys.executable, "-m", "orchestrator", "run", str(CONFIG))
        subprocess.run(
            [*command, *own, "output.samples=0", *overrides], check=True, timeout=RUN_TIMEOUT_S
        )
    return directory


def is_done(directory: Path) -> bool:
    path = directory / "summary.json"
    return path.exists() and json.loads(path.read_text())["status"] == "done"


def checkpoint(directory: Path, phase: int = -1) -> Path:
    """The one at the end of a phase of training, by default the last: an ordinary model folder."""
    return sorted((directory / "checkpoints").glob("step-*"))[phase]


def figures(directory: Path, phases: Collection[int] | None = None) -> dict[str, float]:
    """Shares of the last evaluation, and completion tokens and seconds of all steps of training,
    in these phases; None: in all."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    evaluated = [row for row in rows if phases is None or row.get("made_in") in phases]
    evaluated = [row for row in evaluated if "eval/accuracy" in row]
    trained = [row for row in rows if phases is None or row.get("phase_index") in phases]
    trained = [row for row in trained if "tokens" in row]
    names = ("accuracy", "accuracy_low", "accuracy_high", "flip_rate", "parseable")
    return {name: round(evaluated[-1][f"eval/{name}"], 3) for name in names} | {
        "tokens": sum(row["tokens"] for row in trained),
        "steps_s": round(sum(row["time/step_s"] for row in trained)),
    }


def report(rows: Sequence[Mapping[str, Any]], options: argparse.Namespace, salt: str) -> None:
    """Prints the rows, each of one seed and arm, and writes what the options ask for."""
    text = json.dumps(rows, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    if options.plot:
        options.plot.write_text(plot(rows, salt))


def plot(rows: Sequence[Mapping[str, Any]], salt: str) -> str:
    """Held-out accuracy by arm, and by form if there are several: a point with its interval for
    each seed, in their order, and a line at the mean."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    forms = list(dict.fromkeys(row.get("form") for row in rows))
    figure, axes = new_figure(width=5.6, height=3.2)
    for place, (arm, form) in enumerate(product(arms, forms)):
        own = [row for row in rows if row["arm"] == arm and row.get("form") == form]
        accuracy = [row["accuracy"] for row in own]
        left, right = (place + 0.2) / len(forms), (place + 0.8) / len(forms)
        axes.errorbar(
            [left + (right - left) * (index + 0.5) / len(own) for index in range(len(own))],
            accuracy,
            yerr=[
                [row["accuracy"] - row["accuracy_low"] for row in own],
                [row["accuracy_high"] - row["accuracy"] for row in own],
            ],
            fmt="o",
            markersize=4,
            elinewidth=1,
            color=COLOURS[forms.index(form)],
            label=form if arm == arms[0] else None,
        )
        axes.hlines(mean(accuracy), left, right, color=SOFT, linewidth=1)
        axes.annotate(f"{mean(accuracy):.3f}", (right, mean(accuracy)), fontsize=7, color=SOFT)
    axes.set_xticks([index + 0.5 for index in range(len(arms))], arms)
    axes.set_ylabel("held-out accuracy, both orders", fontsize=8)
    if len(forms) > 1:
        axes.legend(fontsize=7, frameon=False)
    return svg(figure, salt)
