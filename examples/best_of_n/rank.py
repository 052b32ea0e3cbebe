"""How often a served judge puts the best answer first: RMB's best-of-N lists, by each method.

    gavel serve MODEL
    python examples/best_of_n/rank.py RMB [--items 200] [--methods knockout,round-robin]

RMB is a folder that holds the benchmark's BoN_set. The server's token is that of GAVEL_SERVE_TOKEN.
Exit status: 0 done, 1 the server failed, 2 bad input.
"""

import argparse
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

import httpx
from rich.console import Console
from rich.progress import track

from evaluation.aggregate import read_benchmark
from judging.errors import DataError, GavelError, InfrastructureError
from serving.clients import URL_VARIABLE, JudgeClient, JudgeError

METHODS = ("knockout", "round-robin", "bradley-terry")
UNUSABLE = 422  # a list that cannot be judged, as when it is longer than the model's context


@dataclass(frozen=True)
class AnswerList:
    uid: str
    conversation: list[dict[str, str]]
    candidates: list[str]
    best: int  # its index


@dataclass(frozen=True)
class Outcome:
    """Of one list, by method."""

    is_first: dict[str, bool]  # whether the best answer is
    comparisons: dict[str, int]
    undecided: dict[str, int]  # comparisons without a verdict
    chance: float  # of a ranking by lot


def read_lists(folder: str, count: int | None, seed: int) -> list[AnswerList]:
    """`count` lists by lot, or all. A list's answers are shuffled: equal ones rank by their place.

    Raises:
        DataError: there are no lists.
    """
    items = [item for item in read_benchmark("rmb", folder) if item.subset.startswith("BoN_set")]
    if not items:
        raise DataError(f"{folder}: holds RMB's pairs and no list: its BoN_set is missing")
    if count is not None and count < len(items):
        items = random.Random(seed).sample(items, count)
    lists = []
    for item in items:
        pairs = [comparison.pair for comparison in item.comparisons]
        candidates = [pairs[0].chosen, *(pair.rejected for pair in pairs)]
        order = list(range(len(candidates)))
        random.Random(f"{seed}/{item.uid}").shuffle(order)
        turns = [{"role": turn.role, "content": turn.content} for turn in pairs[0].conversation]
        lists.append(AnswerList(item.uid, turns, [candidates[i] for i in order], order.index(0)))
    return lists


def judged(
    client: JudgeClient, answers: AnswerList, methods: tuple[str, ...], opponents: int | None
) -> Outcome | str:
    """The outcome, or why the server cannot judge this list.

    Raises:
        JudgeError: the server failed, or refuses all lists.
    """
    n = len(answers.candidates)
    rankings = {}
    try:
        for method in methods:
            how = {}
            if method == "bradley-terry" and opponents is not None:
                how["opponents"] = min(opponents, n // 2)
            rankings[method] = client.rank(
                answers.conversation, answers.candidates, method=method, **how
            )
    except JudgeError as error:
        if error.status != UNUSABLE:
            raise
        return f"{answers.uid}: {error}"
    return Outcome(
        {method: said["order"][0] == answers.best for method, said in rankings.items()},
        {method: said["comparisons"] for method, said in rankings.items()},
        {method: said["undecided"] for method, said in rankings.items()},
        1 / n,
    )


def table(outcomes: list[Outcome]) -> str:
    """A line for each method, and chance. ± is half of a 95 % interval, by the normal law."""
    lines = [f"{'method':<15}{'best first':>12}{'±':>8}{'comparisons':>14}{'undecided':>12}"]
    for method in outcomes[0].is_first:
        share = fmean(outcome.is_first[method] for outcome in outcomes)
        half = 1.96 * sqrt(share * (1 - share) / len(outcomes))
        spent = sum(outcome.comparisons[method] for outcome in outcomes)
        undecided = sum(outcome.undecided[method] for outcome in outcomes)
        lines.append(f"{method:<15}{share:>12.1%}{half:>8.1%}{spent:>14,}{undecided:>12,}")
    chance = fmean(outcome.chance for outcome in outcomes)
    return "\n".join([*lines, f"{'chance':<15}{chance:>12.1%}"])


def run(client: JudgeClient, lists: list[AnswerList], options: argparse.Namespace) -> str:
    """Asks for all lists, some at once, and answers the table.

    Raises:
        DataError: the server could judge none of them.
        JudgeError: as `judged`.
    """
    with ThreadPoolExecutor(options.concurrency) as pool:
        results = pool.map(
            lambda answers: judged(client, answers, options.methods, options.opponents), lists
        )
        shown = track(results, "ranking", len(lists), console=Console(stderr=True))
        told = list(shown)
    outcomes = [result for result in told if isinstance(result, Outcome)]
    refusals = [result for result in told if isinstance(result, str)]
    if not outcomes:
        raise DataError(f"none of {len(lists):,} lists could be judged: {refusals[0]}")
    head = f"{len(outcomes):,} lists"
    if refusals:
        head += f", {len(refusals):,} left out, as {refusals[0]}"
    return f"{head}\n{table(outcomes)}"


def check_server(url: str, transport: httpx.BaseTransport | None = None) -> None:
    """Raises InfrastructureError at once; a client would try again until its deadline."""
    try:
        with httpx.Client(transport=transport, trust_env=False, timeout=10) as http:
            status = http.get(f"{url.rstrip('/')}/health").status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InfrastructureError(
            f"no server answers at {url} ({error}): start one by gavel serve MODEL, or give --url"
        ) from None
    if status != httpx.codes.OK:
        raise InfrastructureError(f"{url}/health answers {status}: no judge, or one that is ending")


def main(
    arguments: list[str] | None = None, *, transport: httpx.BaseTransport | None = None
) -> int:
    options = _options(arguments)
    try:
        lists = read_lists(options.folder, options.items, options.seed)
        check_server(options.url, transport)
        client = JudgeClient(options.url, transport=transport)
        print(run(client, lists, options))
    except JudgeError as error:
        print(f"rank: {error}", file=sys.stderr)
        return 1
    except GavelError as error:
        print(f"rank: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", metavar="RMB", help="folder with the benchmark's BoN_set")
    parser.add_argument("--url", default=os.environ.get(URL_VARIABLE, "http://127.0.0.1:8000"))
    parser.add_argument("--items", type=_positive, metavar="N", help="lists by lot (default: all)")
    parser.add_argument("--methods", type=_methods, default=METHODS, metavar="A,B")
    parser.add_argument(
        "--opponents", type=_positive, metavar="K", help="of bradley-terry (default: all)"
    )
    parser.add_argument("--concurrency", type=_positive, default=16, help="lists at once")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: give a whole number, 1 or more")
    return int(text)


def _methods(text: str) -> tuple[str, ...]:
    methods = tuple(text.split(","))
    if unknown := [method for method in methods if method not in METHODS]:
        raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}: give of {', '.join(METHODS)}")
    return methods


if __name__ == "__main__":
    sys.exit(main())
