"""From a pairwise judge to an order of many answers, and to a score of one.

Owns the designs (which candidates are compared) and what is made of the outcomes. It knows no
judge: `compare(i, j)` answers the share of the judge's verdicts for candidate i, from 0 to 1, or
None where it gave none that can be read. Such a comparison counts as a draw in a ranking, which
must order all, and stands in `undecided`; in a score it is left out.

Whatever the judge says, also in circles, the order is total: equal scores go by index.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from judging.errors import DataError
from serving.together import together

Method = Literal["knockout", "round-robin", "bradley-terry"]
Compare = Callable[[int, int], Awaitable[float | None]]
Pair = tuple[int, int]

# Weight of the prior that all strengths are 0, as that of so many squared units: it keeps finite
# the strength of one who never lost, and is little beside a handful of comparisons.
PRIOR = 0.1
_STEPS = 100  # of Newton's method; it takes about 6
_DIGITS = 9  # strengths that differ by less than rounding does are equal


@dataclass(frozen=True, slots=True)
class Ranking:
    order: tuple[int, ...]  # candidates by index, the best first
    # Of each candidate: knock-out: matches won; round robin: mean share of verdicts, 0 to 1;
    # Bradley-Terry: log-strength, of mean 0.
    scores: tuple[float, ...]
    comparisons: int
    undecided: tuple[Pair, ...]  # those of them without a verdict that can be read


@dataclass(frozen=True, slots=True)
class Score:
    share: float | None  # of the verdicts against the references, 0 to 1; None: there is none
    comparisons: int
    undecided: int


async def rank(
    method: Method, n: int, compare: Compare, *, opponents: int | None = None, seed: int = 0
) -> Ranking:
    """Ranks candidates 0 to n - 1.

    Knock-out finds the best of a judge that contradicts itself nowhere, for the fewest comparisons;
    the others are ordered by the round that they reached. Round robin compares all. Bradley-Terry
    fits strengths to all comparisons, or to those of a sparse design (`opponents`, see `design`).

    Raises:
        DataError: fewer than two candidates, or `opponents` that do not fit.
    """
    _check(method, n, opponents)
    if method == "knockout":
        return await _knockout(n, compare)
    pairs = design(n, opponents, seed)
    shares = await together(_asked(compare, pair) for pair in pairs)
    outcomes = {pair: _drawn(share) for pair, share in zip(pairs, shares, strict=True)}
    scores = _win_shares(n, outcomes) if method == "round-robin" else strengths(n, outcomes)
    return Ranking(_by(scores), tuple(scores), len(pairs), _without_share(pairs, shares))


async def score(references: int, compare: Callable[[int], Awaitable[float | None]]) -> Score:
    """How one answer fares against each of some others; `compare(k)`: its share against k.

    Raises:
        DataError: there are no references.
    """
    if references < 1:
        raise DataError("a score needs at least one reference answer to be compared with")
    shares = await together(_called(compare, index) for index in range(references))
    decided = [share for share in shares if share is not None]
    mean = sum(decided) / len(decided) if decided else None
    return Score(mean, references, references - len(decided))


def comparisons_needed(method: Method, n: int, *, opponents: int | None = None) -> int:
    """Raises DataError as `rank`."""
    _check(method, n, opponents)
    return n - 1 if method == "knockout" else len(design(n, opponents))


def design(n: int, opponents: int | None = None, seed: int = 0) -> list[Pair]:
    """The pairs that are compared: all, or a part that links all candidates.

    For the part the candidates are dealt to a ring by `seed`, and each meets those at `opponents`
    distances to either side: always its neighbours, and the others spread over the ring.
    """
    if opponents is None:
        return list(combinations(range(n), 2))
    ring = list(range(n))
    random.Random(seed).shuffle(ring)
    distances = np.unique(np.linspace(1, n // 2, opponents).round().astype(int)).tolist()
    steps = ((place, (place + far) % n) for far in distances for place in range(n))
    return sorted({(min(ring[a], ring[b]), max(ring[a], ring[b])) for a, b in steps})


def strengths(n: int, outcomes: Mapping[Pair, float]) -> list[float]:
    """Bradley-Terry log-strengths: the maximum of likelihood times prior.

    i beats j with probability sigmoid(s_i - s_j); an outcome between 0 and 1 counts in part for
    both. The prior is a normal one of precision PRIOR around 0, so that the maximum exists and is
    unique for every design and outcome.
    """
    first = np.array([i for i, _ in outcomes], dtype=int)
    second = np.array([j for _, j in outcomes], dtype=int)
    share = np.array(list(outcomes.values()))
    at: NDArray[Any] = np.zeros(n)
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(at[second] - at[first]))
        slope = PRIOR * at
        np.add.at(slope, first, chance - share)
        np.add.at(slope, second, share - chance)
        curve = chance * (1 - chance)
        bend = PRIOR * np.eye(n)
        for row, column, sign in ((first, first, 1), (second, second, 1), (first, second, -1)):
            np.add.at(bend, (row, column), sign * curve)
        np.add.at(bend, (second, first), -curve)
        step = np.linalg.solve(bend, slope)
        at = _lowered(at, step, slope, (first, second, share))
        if float(np.abs(step).max()) < 1e-12:
            break
    return [float(value) + 0.0 for value in at.round(_DIGITS)]


def _lowered(
    at: NDArray[Any],
    step: NDArray[Any],
    slope: NDArray[Any],
    compared: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
) -> NDArray[Any]:
    """The point after Newton's step, or after as much of it as lowers the loss."""
    first, second, share = compared

    def loss(point: NDArray[Any]) -> float:
        gap = point[first] - point[second]
        return float(np.sum(np.logaddexp(0, gap) - share * gap) + PRIOR / 2 * (point @ point))

    now, part = loss(at), 1.0
    while part > 1e-6 and loss(at - part * step) > now - 1e-4 * part * float(step @ slope):
        part /= 2
    return at - part * step


async def _knockout(n: int, compare: Compare) -> Ranking:
    """Neighbours meet, round by round; one who is left over goes on unmatched."""
    wins, rounds = [0.0] * n, [0] * n
    alive, number = list(range(n)), 0
    undecided: tuple[Pair, ...] = ()
    while len(alive) > 1:
        number += 1
        matches = list(zip(alive[::2], alive[1::2], strict=False))
        shares = await together(_asked(compare, match) for match in matches)
        undecided += _without_share(matches, shares)
        winners = [
            i if _drawn(share) >= 0.5 else j for (i, j), share in zip(matches, shares, strict=True)
        ]
        for winner in winners:
            wins[winner] += 1
        alive = winners + alive[2 * len(matches) :]
        for candidate in alive:
            rounds[candidate] = number
    order = sorted(range(n), key=lambda index: (-rounds[index], index))
    return Ranking(tuple(order), tuple(wins), n - 1, undecided)


def _win_shares(n: int, outcomes: Mapping[Pair, float]) -> list[float]:
    totals = [0.0] * n
    for (i, j), share in outcomes.items():
        totals[i] += share
        totals[j] += 1 - share
    return [round(total / (n - 1), _DIGITS) for total in totals]


def _by(scores: Sequence[float]) -> tuple[int, ...]:
    return tuple(sorted(range(len(scores)), key=lambda index: (-scores[index], index)))


def _without_share(pairs: Sequence[Pair], shares: Sequence[float | None]) -> tuple[Pair, ...]:
    return tuple(pair for pair, share in zip(pairs, shares, strict=True) if share is None)


def _drawn(share: float | None) -> float:
    return 0.5 if share is None else share


async def _asked(compare: Compare, pair: Pair) -> float | None:
    return await compare(*pair)


async def _called(compare: Callable[[int], Awaitable[float | None]], index: int) -> float | None:
    return await compare(index)


def _check(method: Method, n: int, opponents: int | None) -> None:
    if n < 2:
        raise DataError(f"a ranking needs at least 2 candidates, not {n}")
    if opponents is None:
        return
    if method != "bradley-terry":
        raise DataError(f"opponents is for bradley-terry, not for {method}: leave it out")
    if not 1 <= opponents <= n // 2:
        raise DataError(f"opponents is {opponents}: of {n} candidates it may be 1 to {n // 2}")
