"""What verification and a second pass are worth: traces of a teacher that errs in a quarter.

    python benchmarks/trace_quality.py [--errors "at random"] [--seeds 14 15 16] [--runs DIR]
        [--json FILE] [--plot FILE]

For each seed the quickstart is distilled three times, for as many optimizer steps, from the same
weights and the same pairs, of which a teacher that errs in a quarter wrote the traces: from all of
them; from those that are right (a phase of synthesis with one pass); and from those that are right
and, of the other pairs, those of a second teacher who is told the verdict (with two passes). The
first teacher errs at random, or by kind of problem, or there are both in turn. Prints one row for
each seed, teacher and arm as JSON.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import erring_teacher
import seeded_runs

from judging.presentation import balanced_order
from judging.quickstart import UNTAUGHT, QuickstartTask, generate
from judging.quickstart_teacher import ErringOracle, problem_of
from judging.readers import read_pairs, write_pairs
from judging.records import PreferencePair, Presentation

WRONG_SHARE = 0.25  # as RM-R1 found of its first teacher
PAIRS, HELD_OUT = 800, 512
STEPS = 150  # as the quickstart takes for as many pairs
ORACLE = "uses: 'builtin:quickstart'"
ERRORS = ("at random", "by kind")
PASSES = {
    "everything": (),
    "verified": ("{teacher: first}",),
    "verified, second pass": ("{teacher: first}", "{teacher: second, tells_verdict: true}"),
}


def write_files(folder: Path, seed: int) -> None:
    """The pairs of one seed; the phases of synthesis ask for the same traces again."""
    task = QuickstartTask(seed=seed, distill_pairs=PAIRS, heldout_pairs=HELD_OUT)
    data = generate(task)
    folder.mkdir(parents=True, exist_ok=True)
    untraced = [replace(pair, trace=None, trace_order=None) for pair in data.distill]
    write_pairs(folder / "others.jsonl", data.reinforce)  # of which the tokenizer is made
    write_pairs(folder / "held-out.jsonl", data.heldout)
    write_pairs(folder / "pairs.jsonl", untraced)
    at_random = ErringOracle(wrong_share=WRONG_SHARE, seed=seed).trace
    for errors, teach in zip(ERRORS, (at_random, erring_teacher.trace), strict=True):
        write_pairs(_everything(folder, errors), _first_pass(untraced, seed, teach))


def _everything(folder: Path, errors: str) -> Path:
    return folder / f"everything-{errors.replace(' ', '-')}.jsonl"


def _first_pass(
    pairs: Iterable[PreferencePair], seed: int, teach: Callable[[Presentation], str]
) -> Iterator[PreferencePair]:
    for pair in pairs:
        order = balanced_order(pair.uid, seed)
        yield replace(pair, trace=teach(Presentation(pair, order)), trace_order=order)


def run(arm: str, errors: str, seed: int, runs: Path) -> dict[str, Any]:
    """One row."""
    folder = (runs / f"trace-quality-data-{seed}").resolve()
    if not folder.exists():
        write_files(folder, seed)
    everything = _everything(folder, errors)
    model = runs.resolve() / f"everything-at-random-seed-{seed}" / "model"
    made = (f"model.make.seed={seed}",)  # by the first arm
    own: tuple[str, ...] = (f"data.distill_path={everything}", "phases=[distill, evaluate]")
    if PASSES[arm]:
        own = (
            "phases=[synthesize, distill, evaluate]",
            f"data.distill_path={folder / 'pairs.jsonl'}",
            f"synthesize.teachers={{first: {_first(errors, seed)}, second: {{{ORACLE}}}}}",
            "synthesize.checks.weights=false",  # the compact template asks for none
            f"synthesize.passes=[{', '.join(PASSES[arm])}]",
        )
    directory = seeded_runs.run(
        f"{arm.replace(',', '')} {errors}",
        seed,
        runs,
        "data.generate=null",
        f"data.path={folder / 'others.jsonl'}",
        f"data.heldout_path={folder / 'held-out.jsonl'}",
        "data.overlap=ignore",  # parts of the task share their phrases
        "distill.epochs=100",
        f"distill.max_steps={STEPS}",
        "rollout.workers=1",  # only evaluates
        *(("model.make=null", f"model.path={model}") if model.exists() else made),
        *own,
    )
    synthesized = (directory / "synthesis").rglob("traces.jsonl")
    return {
        "seed": seed,
        "arm": arm,
        "form": f"errors {errors}",
        **counts(next(synthesized, everything)),
        **seeded_runs.figures(directory),
        "by_words": accuracy_by(_words_taught, directory, folder / "held-out.jsonl"),
        "by_kind": accuracy_by(_kind, directory, folder / "held-out.jsonl"),
    }


def _first(errors: str, seed: int) -> str:
    """The first teacher, as YAML."""
    if errors == "by kind":
        return "{uses: 'import:benchmarks.erring_teacher:answer'}"
    return f"{{{ORACLE}, options: {{wrong_share: {WRONG_SHARE}, seed: {seed}}}}}"


def counts(path: Path) -> dict[str, int]:
    """How many traces there are to imitate, and how many of them are wrong."""
    gold = {"chosen_first": "[[A]]", "rejected_first": "[[B]]"}
    pairs = list(read_pairs(path, every_trace=True))
    wrong = [p for p in pairs if p.trace and p.trace_order and gold[p.trace_order] not in p.trace]
    return {"traces": len(pairs), "wrong": len(wrong)}


def accuracy_by(
    part_of: Callable[[PreferencePair], str], directory: Path, held_out: Path
) -> dict[str, float]:
    """In each part of the held-out pairs."""
    parts = {pair.uid: part_of(pair) for pair in read_pairs(held_out)}
    found: dict[str, list[bool]] = defaultdict(list)
    (path,) = directory.glob("traces/*-evaluate/*.jsonl")
    for row in map(json.loads, path.read_text().splitlines()):
        part = parts[row["presentation_uid"].partition("/")[0]]
        found[part].append(row["verdict"] == row["gold"])
    return {part: round(mean(found[part]), 3) for part in sorted(found)}


def _kind(pair: PreferencePair) -> str:
    return pair.category or ""


def _words_taught(pair: PreferencePair) -> str:
    """How many of the two words that decide the traces show; sums have none."""
    if pair.category == "sum":
        return "sum"
    problem = problem_of(pair.conversation, (pair.chosen, pair.rejected))
    return str(sum(each.quote not in UNTAUGHT for each in (problem.chosen, problem.rejected)))


def main() -> None:
    parser = seeded_runs.arguments(__doc__, seeds=(14, 15, 16))
    parser.add_argument("--errors", nargs="+", choices=ERRORS, default=["at random"])
    options = parser.parse_args()
    chosen = product(options.seeds, options.errors, PASSES)
    rows = [run(arm, errors, seed, options.runs) for seed, errors, arm in chosen]
    seeded_runs.report(rows, options, salt="trace-quality")


if __name__ == "__main__":
    main()
