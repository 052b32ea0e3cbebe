"""`gavel eval`: a judge on the public benchmarks, two of them compared, and results of others."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.aggregate import BENCHMARKS, aggregate_others
from evaluation.others.reading import Totals
from judging.errors import ConfigurationError
from orchestrator.console import duration, output_console, printable

_MODEL = "model"  # the verb of a use without one
_EVAL_HELP = """\
A judge on RewardBench, RewardBench 2, RM-Bench, RMB and JudgeBench.

  gavel eval MODEL --bench rewardbench,rm-bench --data DIR
  gavel eval compare A B
  gavel eval aggregate BENCH FILE

`gavel eval MODEL --help` and the like say more."""
_MODEL_HELP = """\
Has a judge compare all answers of the benchmarks, in both orders, with one start of the engines.
Each judgment is written down when it exists: the same command goes on where it ended, and one for
more votes or benchmarks judges only what is missing.

  gavel eval runs/first/checkpoints/step-000120 --bench rmb --data benchmarks
  gavel eval Qwen/Qwen2.5-7B-Instruct --bench rewardbench,rm-bench --data benchmarks \\
    rollout.workers=8 --votes 5
  gavel eval gpt-4o --endpoint https://api.openai.com/v1 --bench judgebench --data benchmarks

DIR holds the benchmarks' files as they are published (docs/evaluation.md); without it they come
from the Hugging Face hub, but for RMB, which is not there. A checkpoint of a run is asked as that
run asked it. The endpoint's token is taken from GAVEL_ENDPOINT_TOKEN."""
_AGGREGATE_HELP = """\
Computes a benchmark's totals from results that others computed, and checks that a file which says
a number twice agrees with itself. Taken are:

  rewardbench   each_small_section_score.json, or rows with subset and results
  rewardbench2  an object with the score of each of the six subsets
  rm-bench      final_result.json; rows with domain, score_chosen and score_rejected; or a folder
                with total_dataset_1, _2 and _3
  rmb           META_RESULT.json; Final_score.json or the logs of one cell; or a folder of them
  judgebench    rows with source, label and judgments"""


def with_verb(arguments: Sequence[str]) -> list[str]:
    """`eval MODEL ...` has a verb too, once argparse sees it."""
    match list(arguments):
        case ["eval", first, *others] if first not in ("aggregate", "compare", "-h", "--help"):
            return ["eval", _MODEL, first, *others]
    return list(arguments)


def add_parser(commands: Any) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="judge public benchmarks",
        description=_EVAL_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="gavel eval MODEL|compare|aggregate ...",
        allow_abbrev=False,
    )
    verbs = evaluate.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_model(verbs)
    _add_compare(verbs)
    _add_aggregate(verbs)


def _add_model(verbs: Any) -> None:
    model = verbs.add_parser(
        _MODEL,
        prog="gavel eval",
        description=_MODEL_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    model.add_argument(
        "model", metavar="MODEL", help="folder, id on the hub, URL, or the endpoint's name for it"
    )
    model.add_argument("overrides", metavar="key=value", nargs="*", help="override of a key")
    model.add_argument(
        "--bench", required=True, metavar="NAMES", help=f"by commas, of {', '.join(BENCHMARKS)}"
    )
    model.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="with the benchmarks' files (default: the Hugging Face hub, but for RMB)",
    )
    model.add_argument("--votes", type=int, default=1, help="in each order (default: 1)")
    model.add_argument(
        "--protocol",
        choices=("both", "published"),
        default="both",
        help="both orders of every pair (default), or one that seed and pair decide",
    )
    model.add_argument("--seed", type=int, default=1, help="of orders and votes (default: 1)")
    model.add_argument(
        "--temperature", type=float, help="default: 0, greedy; rollout.temperature with votes"
    )
    model.add_argument(
        "--limit", type=int, metavar="N", help="items of each benchmark, drawn by seed"
    )
    model.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible, up to /v1")
    model.add_argument(
        "--concurrency", type=int, default=32, help="requests to the endpoint at a time"
    )
    model.add_argument(
        "--output", type=Path, metavar="DIR", help="default: a folder below evaluations/"
    )
    model.add_argument("--json", action="store_true", help="print the results as JSON alone")


def _add_compare(verbs: Any) -> None:
    compare = verbs.add_parser(
        "compare",
        help="put two evaluations side by side, with a paired test",
        description="Compares two evaluations on the items that both have.",
        allow_abbrev=False,
    )
    for name in ("a", "b"):
        compare.add_argument(name, metavar=name.upper(), type=Path, help="folder of an evaluation")
    compare.add_argument("--json", action="store_true", help="print it as JSON")


def _add_aggregate(verbs: Any) -> None:
    aggregate = verbs.add_parser(
        "aggregate",
        help="compute totals from results of others",
        description=_AGGREGATE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    aggregate.add_argument("benchmark", metavar="BENCH", choices=BENCHMARKS, help="its name")
    aggregate.add_argument("file", metavar="FILE", type=Path, help="file or folder of results")
    aggregate.add_argument("--json", action="store_true", help="print them as JSON")


def run_command(options: argparse.Namespace) -> int:
    """Does one command; returns the exit status. Raises GavelError."""
    return {_MODEL: _evaluate, "compare": _compare, "aggregate": _aggregate}[options.verb](options)


def _evaluate(options: argparse.Namespace) -> int:
    from orchestrator.benchmarks import RESULTS_FILE
    from orchestrator.console import RunConsole, quiet_libraries
    from orchestrator.eval_config import EvalSettings, judge_config
    from orchestrator.eval_run import evaluate_model
    from orchestrator.eval_tables import outcome_tables

    quiet_libraries()
    benchmarks = _benchmarks(options.bench)
    is_here = options.endpoint is None
    config = judge_config(options.model, options.overrides, is_here=is_here)
    settings = EvalSettings(
        benchmarks=benchmarks,
        data=options.data,
        protocol=options.protocol,
        votes=_at_least_1("--votes", options.votes),
        temperature=_temperature(options, config.rollout.temperature),
        seed=options.seed,
        limit=options.limit and _at_least_1("--limit", options.limit),
        endpoint=options.endpoint,
        concurrency=_at_least_1("--concurrency", options.concurrency),
    )
    console = RunConsole("quiet" if options.json else "auto")
    done = evaluate_model(options.model, config, settings, options.output, console)
    if options.json:
        print((done.folder / RESULTS_FILE).read_text("utf-8"), end="")
        return 0
    console.show(outcome_tables(done.outcomes))
    console.say(f"{done.judged_now:,} judgments in {duration(done.wall_s)}; see {done.folder}")
    return 0


def _benchmarks(names: str) -> tuple[Any, ...]:
    found = tuple(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    unknown = [name for name in found if name not in BENCHMARKS]
    if unknown or not found:
        raise ConfigurationError(
            f"--bench {', '.join(unknown) or '(none)'}: name some of {', '.join(BENCHMARKS)}"
        )
    return found


def _at_least_1(option: str, number: int) -> int:
    if number < 1:
        raise ConfigurationError(f"{option} {number}: give 1 or more")
    return number


def _temperature(options: argparse.Namespace, sampling: float) -> float:
    if options.temperature is None:
        return sampling if options.votes > 1 else 0.0
    if options.temperature < 0:
        raise ConfigurationError(f"--temperature {options.temperature:g}: give 0 or more")
    if options.temperature == 0 and options.votes > 1:
        raise ConfigurationError(
            f"--temperature 0 and --votes {options.votes}: greedy votes are all the same; leave "
            "one of them out"
        )
    return options.temperature


def _compare(options: argparse.Namespace) -> int:
    from orchestrator.eval_compare import compare_folders
    from orchestrator.eval_tables import compared_table

    compared, names = compare_folders(options.a, options.b)
    if options.json:
        print(json.dumps(asdict(compared), indent=2, ensure_ascii=False))
    else:
        output_console().print(compared_table(compared, names))
    return 0


def _aggregate(options: argparse.Namespace) -> int:
    totals = aggregate_others(options.benchmark, options.file)
    console = output_console()
    if options.json:
        shown = {**asdict(totals), "partial": totals.is_partial}
        text = json.dumps(shown, indent=2, ensure_ascii=False)
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    else:
        _print(totals, console)
    return 0


def _print(totals: Totals, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column(totals.benchmark, overflow="fold")
    for column in ("score", "right", "of") if totals.counts else ("score",):
        table.add_column(column, justify="right")
    shown = {**totals.parts, **totals.totals}  # a part that is a total too stands once
    for name, share in shown.items():
        cells = [Text(printable(name)), f"{share:.4f}"]
        if count := totals.counts.get(name):
            cells += [f"{count.right:g}", str(count.items)]
        table.add_row(*cells, style="bold" if name in totals.totals else None)
    console.print(Text(f"read as {totals.layout}"), soft_wrap=True)
    console.print(table)
    if totals.is_partial:
        missing = f"partial: without {', '.join(totals.absent)}"
        console.print(Text(printable(missing)), soft_wrap=True)
