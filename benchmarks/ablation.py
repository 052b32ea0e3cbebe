"""The quickstart's ablation, as in RM-R1's tables 2 and 3: cold-start RL, distilled, both.

    python benchmarks/ablation.py [--seeds 14 15 16] [--runs DIR] [--json FILE] [--plot FILE]
    python benchmarks/ablation.py --sequences 32768 --forms "with rubrics" --runs DIR

Each with rubrics (the oracle's traces) and without (`<answer>[[A]]</answer>` alone), after as many
sequences trained on. A model of random weights writes no verdict, and so gets no reward: all arms
of a seed and form begin with one base instead, which has imitated that form on other problems with
verdicts by coin. It writes judgments of which half are right. Prints one row for each seed, arm
and form as JSON.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import seeded_runs

from judging.quickstart import QuickstartTask, generate
from judging.quickstart_teacher import teach
from judging.readers import write_pairs
from judging.records import Letter, PreferencePair, Presentation

Form = Literal["with rubrics", "without"]
DISTILL_PAIRS, BASE_PAIRS, HELD_OUT = 800, 800, 512
BASE_STEPS: dict[Form, int] = {"with rubrics": 100, "without": 40}  # that suffice to have the form
TRACES_PER_STEP = 64
GROUP, PROMPTS_PER_STEP, PROMPTS_PER_UPDATE = 4, 64, 32


@dataclass(frozen=True, slots=True)
class Budget:
    """Sequences that each arm trains on."""

    all: int
    traces_first: int  # of these, in distillation then RL


def write_files(folder: Path, seed: int) -> None:
    """The pairs of one seed: parts that share no problem, and both forms of the traces."""
    task = QuickstartTask(
        seed=seed, distill_pairs=DISTILL_PAIRS + BASE_PAIRS, heldout_pairs=HELD_OUT
    )
    data = generate(task)
    folder.mkdir(parents=True, exist_ok=True)
    write_pairs(folder / "pairs.jsonl", data.reinforce)
    write_pairs(folder / "held-out.jsonl", data.heldout)
    by_coin = list(_by_coin(data.distill[DISTILL_PAIRS:], seed))
    for form in get_args(Form):
        write_pairs(folder / _name("base", form), _in_form(by_coin, form))
        write_pairs(folder / _name("traces", form), _in_form(data.distill[:DISTILL_PAIRS], form))


def _by_coin(pairs: Iterable[PreferencePair], seed: int) -> Iterator[PreferencePair]:
    """Traces that are sound but for their reading of the question, which is right or wrong."""
    coin = random.Random(f"{seed}/coin")
    letters: tuple[Letter, ...] = get_args(Letter)
    for pair in pairs:
        assert pair.trace_order is not None, "generated with a trace"
        shown = Presentation(pair, pair.trace_order)
        yield replace(pair, trace=teach(shown, letter=coin.choice(letters)))


def _in_form(pairs: Iterable[PreferencePair], form: Form) -> Iterator[PreferencePair]:
    for pair in pairs:
        assert pair.trace is not None, "generated with a trace"
        whole = form == "with rubrics"
        yield pair if whole else replace(pair, trace=pair.trace[pair.trace.index("<answer>") :])


def _name(what: str, form: Form) -> str:
    return f"{what}-{form.replace(' ', '-')}.jsonl"


def rows(seed: int, runs: Path, forms: Sequence[Form], budget: Budget) -> Iterator[dict[str, Any]]:
    folder = (runs / f"ablation-data-{seed}").resolve()
    if not folder.exists():
        write_files(folder, seed)
    model: tuple[str, ...] = (f"model.make.seed={seed}",)
    for form in forms:
        for arm, found in arms(form, seed, runs, folder, model, budget):
            yield {"seed": seed, "arm": arm, "form": form, **found}
        model = _model(runs / f"cold-start-RL-with-rubrics-seed-{seed}" / "model")


def arms(
    form: Form, seed: int, runs: Path, folder: Path, model: tuple[str, ...], budget: Budget
) -> Iterator[tuple[str, dict[str, float]]]:
    """Each arm's name and figures; `model` says which random weights the base begins with."""
    settings = _settings(folder)
    cold = seeded_runs.run(
        f"cold-start RL {form}",
        seed,
        runs,
        *settings,
        *model,
        f"data.distill_path={folder / _name('base', form)}",
        "phases=[distill, evaluate, reinforce, evaluate]",
        f"distill.max_steps={BASE_STEPS[form]}",
        f"reinforce.max_steps={rl_steps(budget.all)}",
    )
    yield "base", seeded_runs.figures(cold, phases=(0, 1))
    yield "cold-start RL", seeded_runs.figures(cold, phases=(2, 3))
    settings = (
        *settings,
        *_model(seeded_runs.checkpoint(cold, phase=0)),
        f"data.distill_path={folder / _name('traces', form)}",
    )
    distilled = seeded_runs.run(
        f"distilled {form}",
        seed,
        runs,
        *settings,
        "phases=[distill, evaluate]",
        f"distill.max_steps={distill_steps(budget.all)}",
    )
    yield "distilled", seeded_runs.figures(distilled)
    both = seeded_runs.run(
        f"distilled then RL {form}",
        seed,
        runs,
        *settings,
        "phases=[distill, evaluate, reinforce, evaluate]",
        f"distill.max_steps={distill_steps(budget.traces_first)}",
        f"reinforce.max_steps={rl_steps(budget.all - budget.traces_first)}",
    )
    before = seeded_runs.figures(both, phases=(0, 1))["accuracy"]
    yield "distilled, then RL", seeded_runs.figures(both) | {"before_rl": before}


def rl_steps(sequences: int) -> int:
    return sequences // (GROUP * PROMPTS_PER_STEP)


def distill_steps(sequences: int) -> int:
    return sequences // TRACES_PER_STEP


def _settings(folder: Path) -> tuple[str, ...]:
    """What all runs of a seed have in common."""
    return (
        "data.generate=null",
        f"data.path={folder / 'pairs.jsonl'}",
        f"data.heldout_path={folder / 'held-out.jsonl'}",
        "data.overlap=ignore",  # parts of the task share their phrases
        "distill.epochs=1000",  # the steps decide
        f"distill.batch_size={TRACES_PER_STEP}",
        "reinforce.epochs=1000",
        f"reinforce.prompts_per_step={PROMPTS_PER_STEP}",
        f"reinforce.mini_batch_prompts={PROMPTS_PER_UPDATE}",
        f"reinforce.group_size={GROUP}",
        "rollout.workers=1",  # it has room for all sequences of a step
        "checkpoint.every_steps=null",  # but at the end of each phase
    )


def _model(folder: Path) -> tuple[str, ...]:
    return "model.make=null", f"model.path={folder.resolve()}"


def main() -> None:
    parser = seeded_runs.arguments(__doc__, seeds=(14, 15, 16))
    parser.add_argument("--sequences", type=int, default=9_216, help="that each arm trains on")
    parser.add_argument("--traces-first", type=int, default=6_144, help="of these, before RL")
    parser.add_argument("--forms", nargs="+", choices=get_args(Form), default=get_args(Form))
    options = parser.parse_args()
    budget = Budget(options.sequences, options.traces_first)
    found = [
        row for seed in options.seeds for row in rows(seed, options.runs, options.forms, budget)
    ]
    seeded_runs.report(found, options, salt="ablation")


if __name__ == "__main__":
    main()
