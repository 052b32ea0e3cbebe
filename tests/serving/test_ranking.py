"""Rankings and scores from an injected comparison."""

import asyncio
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judging.errors import DataError
from serving.ranking import PRIOR, comparisons_needed, design, rank, score, strengths

METHODS = ("knockout", "round-robin", "bradley-terry")
permutations = st.integers(2, 12).flatmap(lambda n: st.permutations(range(n)))


class Judge:
    """Prefers by worth, or by a table; counts what it is asked."""

    def __init__(self, worth=None, table=None):
        self.worth, self.table, self.asked = worth, table, []

    async def __call__(self, i, j):
        self.asked.append((i, j))
        await asyncio.sleep(0)
        if self.table is not None:
            return self.table[i, j]
        return float(self.worth[i] > self.worth[j])


def ranked(method, judge, n, **options):
    return asyncio.run(rank(method, n, judge, **options))


@given(worth=permutations)
def test_a_perfect_judge_ranks_perfectly(worth):
    best_first = tuple(sorted(range(len(worth)), key=lambda index: -worth[index]))
    assert ranked("round-robin", Judge(worth), len(worth)).order == best_first
    assert ranked("bradley-terry", Judge(worth), len(worth)).order == best_first
    assert ranked("knockout", Judge(worth), len(worth)).order[0] == best_first[0]


@given(
    n=st.integers(2, 14),
    method=st.sampled_from(METHODS),
    shares=st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), min_size=91, max_size=91),
    data=st.data(),
)
def test_every_judge_gives_a_total_order_at_the_stated_cost(n, method, shares, data):
    opponents = None
    if method == "bradley-terry":
        opponents = data.draw(st.none() | st.integers(1, n // 2))
    table = dict(zip(design(n), shares, strict=False))
    table |= {(j, i): None if s is None else 1 - s for (i, j), s in table.items()}
    judge = Judge(table=table)
    ranking = ranked(method, judge, n, opponents=opponents)
    assert sorted(ranking.order) == list(range(n))
    assert len(judge.asked) == ranking.comparisons
    assert ranking.comparisons == comparisons_needed(method, n, opponents=opponents)
    assert list(ranking.undecided) == [pair for pair in judge.asked if table[pair] is None]
    assert all(math.isfinite(value) for value in ranking.scores)


@pytest.mark.parametrize(
    ("method", "n", "opponents", "cost"),
    [
        ("knockout", 8, None, 7),
        ("knockout", 2, None, 1),
        ("round-robin", 8, None, 28),
        ("bradley-terry", 8, None, 28),
        ("bradley-terry", 8, 1, 8),
        ("bradley-terry", 9, 2, 18),
        ("bradley-terry", 8, 4, 28),  # the last distance is met from both sides
        ("bradley-terry", 2, 1, 1),
    ],
)
def test_costs(method, n, opponents, cost):
    assert comparisons_needed(method, n, opponents=opponents) == cost


@pytest.mark.parametrize("method", METHODS)
def test_draws_and_circles_go_by_index(method):
    draws = Judge(table=dict.fromkeys(design(5), 0.5))
    order = ranked(method, draws, 5).order
    assert order[0] == 0
    if method != "knockout":
        assert order == (0, 1, 2, 3, 4)
        circle = Judge(table={(0, 1): 1.0, (1, 2): 1.0, (0, 2): 0.0})
        assert ranked(method, circle, 3).order == (0, 1, 2)


def test_a_knockout_of_five_goes_by_rounds():
    ranking = ranked("knockout", judge := Judge([1, 2, 3, 4, 5]), 5)
    assert judge.asked == [(0, 1), (2, 3), (1, 3), (3, 4)]
    assert ranking.order == (4, 3, 1, 0, 2)
    assert ranking.scores == (0, 1, 0, 2, 1)


@given(worth=permutations, opponents=st.integers(1, 6), seed=st.integers(0, 5))
def test_a_sparse_design_links_all_and_meets_nobody_twice(worth, opponents, seed):
    n = len(worth)
    pairs = design(n, min(opponents, n // 2), seed)
    assert len(set(pairs)) == len(pairs)
    assert all(0 <= i < j < n for i, j in pairs)
    linked = {0}
    for _ in range(n):
        linked |= {b for pair in pairs for a, b in (pair, pair[::-1]) if a in linked}
    assert linked == set(range(n))


def test_strengths_are_where_the_gradient_is_zero():
    rng = np.random.default_rng(0)
    outcomes = {pair: float(rng.random()) for pair in design(7, 2)}
    found = strengths(7, outcomes)
    for k in range(7):
        slope = PRIOR * found[k]
        for (i, j), share in outcomes.items():
            surplus = 1 / (1 + math.exp(found[j] - found[i])) - share
            slope += surplus * ((k == i) - (k == j))
        assert slope == pytest.approx(0, abs=1e-7)
    assert sum(found) == pytest.approx(0, abs=1e-7)


def test_strengths_of_two_and_of_a_sweep():
    one, other = strengths(2, {(0, 1): 1.0})
    assert one == -other
    assert 1 / (1 + math.exp(other - one)) == pytest.approx(1 - PRIOR * one, abs=1e-8)
    sweep = strengths(40, dict.fromkeys(design(40), 1.0))
    assert sweep == sorted(sweep, reverse=True)
    assert all(map(math.isfinite, sweep))


def test_scores_leave_out_what_was_not_decided():
    async def compare(k):
        return [1.0, 0.0, None, 1.0][k]

    found = asyncio.run(score(4, compare))
    assert (found.share, found.comparisons, found.undecided) == (pytest.approx(2 / 3), 4, 1)

    async def silent(_):
        return None

    assert asyncio.run(score(2, silent)).share is None
    with pytest.raises(DataError, match="reference"):
        asyncio.run(score(0, silent))


def test_a_failure_is_raised_as_it_is_and_ends_the_others():
    cancelled = []

    async def compare(i, j):
        if (i, j) == (0, 1):
            raise DataError("no")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append((i, j))
            raise

    with pytest.raises(DataError, match="no"):
        asyncio.run(rank("round-robin", 3, compare))
    assert sorted(cancelled) == [(0, 2), (1, 2)]


@pytest.mark.parametrize(
    ("method", "n", "opponents"),
    [
        ("knockout", 1, None),
        ("round-robin", 4, 1),
        ("bradley-terry", 6, 4),
        ("bradley-terry", 6, 0),
    ],
)
def test_what_cannot_be_ranked_is_refused(method, n, opponents):
    with pytest.raises(DataError):
        comparisons_needed(method, n, opponents=opponents)
