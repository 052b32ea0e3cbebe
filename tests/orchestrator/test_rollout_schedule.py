"""The schedule of rollouts: what is admitted, and which units make a step."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judging.errors import InfrastructureError
from orchestrator.schedule import Batch, Outcome, Schedule, open_units

KEPT, AGREEING, FAILED = Outcome.KEPT, Outcome.AGREEING, Outcome.FAILED


def schedule(step_units=2, max_staleness=0, max_rounds=3, **more) -> Schedule[str]:
    return Schedule(step_units, max_staleness=max_staleness, max_rounds=max_rounds, **more)


def admitted(of: Schedule[str]) -> list[int]:
    tickets = []
    while of.may_admit:
        tickets.append(of.admit())
    return tickets


def finish(of: Schedule[str], *outcomes: tuple[int, Outcome], version: int = 0) -> None:
    for ticket, outcome in outcomes:
        of.finish(ticket, outcome, f"unit {ticket}", version=version)


@pytest.mark.parametrize(("max_staleness", "expected"), [(0, 2), (1, 4), (3, 8)])
def test_as_many_units_are_open_as_will_be_fresh_enough(max_staleness, expected):
    assert len(admitted(schedule(2, max_staleness))) == expected == open_units(2, max_staleness)


def test_a_step_waits_for_its_own_units_and_for_no_others():
    plan = schedule(2, max_staleness=1)
    assert admitted(plan) == [0, 1, 2, 3]
    finish(plan, (2, KEPT), (3, KEPT), (1, KEPT))
    assert plan.take(0) is None
    finish(plan, (0, KEPT))
    assert plan.take(0) == Batch(["unit 0", "unit 1"], (0, 1), dropped=0, stale=0, drawn=2)


def test_on_policy_nothing_is_admitted_until_the_weights_are_out():
    plan = schedule(2)
    admitted(plan)
    finish(plan, (0, KEPT), (1, KEPT))
    assert plan.take(0) is not None
    assert not plan.may_admit
    plan.trained()
    assert admitted(plan) == [2, 3]


def test_what_is_dropped_is_replaced_as_soon_as_it_is_known():
    plan = schedule(2)
    admitted(plan)
    finish(plan, (1, AGREEING))
    assert admitted(plan) == [2]
    finish(plan, (2, FAILED))
    assert admitted(plan) == [3]
    finish(plan, (0, KEPT), (3, KEPT))
    assert plan.take(0) == Batch(["unit 0", "unit 3"], (0, 3), dropped=2, stale=0, drawn=4)


def test_nothing_is_generated_for_steps_that_will_not_come():
    plan = schedule(2, max_staleness=3, steps=2)
    assert admitted(plan) == [0, 1, 2, 3]
    finish(plan, (0, KEPT), (1, KEPT), (3, FAILED))
    assert plan.take(0) is not None
    plan.trained()
    assert admitted(plan) == [4]


def test_agreeing_units_fill_a_step_when_no_more_may_be_drawn():
    plan = schedule(2, max_rounds=2)
    admitted(plan)
    finish(plan, (0, AGREEING), (1, FAILED))
    assert admitted(plan) == [2, 3]
    finish(plan, (2, AGREEING), (3, KEPT))
    assert not plan.may_admit
    assert plan.take(0) == Batch(["unit 0", "unit 3"], (0, 3), dropped=2, stale=0, drawn=4)


def test_a_step_without_any_scores_ends_the_run():
    plan = schedule(1, max_rounds=2)
    for ticket in (0, 1):
        assert admitted(plan) == [ticket]
        finish(plan, (ticket, FAILED))
    with pytest.raises(InfrastructureError, match=r"no unit of 2 .* reward\.min_samples"):
        plan.take(0)


def test_a_unit_that_is_too_old_is_generated_again_under_its_ticket():
    plan = schedule(1, max_staleness=1, drawn=7)
    assert admitted(plan) == [7, 8]
    finish(plan, (7, KEPT), version=3)
    finish(plan, (8, KEPT), version=5)
    assert plan.take(5) is None
    assert admitted(plan) == [7]
    finish(plan, (7, KEPT), version=5)
    assert plan.take(5) == Batch(["unit 7"], (7,), dropped=0, stale=1, drawn=8)


@given(
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(1, 4),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.3, 0.8]),
    st.integers(0, 3),
)
def test_no_unit_is_lost_doubled_or_older_than_the_bound(
    step_units, max_staleness, max_rounds, seed, drop_rate, less_open
):
    """Whatever finishes when, and with training that takes any number of turns."""
    chance = random.Random(seed)
    most = max(step_units, open_units(step_units, max_staleness) - less_open)
    plan = schedule(step_units, max_staleness, max_rounds, max_open=most)
    version, open_at, training, used = 0, {}, None, []
    for _ in range(400):
        for ticket in admitted(plan):
            open_at[ticket] = version
        assert plan.open == len(open_at)
        if open_at and chance.random() < 0.9:
            ticket = chance.choice(list(open_at))
            outcome = chance.choice([AGREEING, FAILED]) if chance.random() < drop_rate else KEPT
            plan.finish(ticket, outcome, (ticket, outcome), version=open_at.pop(ticket))
        if training is None:
            try:
                training = plan.take(version)
            except InfrastructureError:
                return
            if training:
                assert training.stale == 0  # the bound holds by the rule of admission
                assert [ticket for ticket, _ in training.units] == list(training.tickets)
                assert len(training.units) <= step_units
                assert all(outcome is not FAILED for _, outcome in training.units)
                used.append(training)
        elif chance.random() < 0.2:
            training, version = None, version + 1
            plan.trained()
    taken = [ticket for batch in used for ticket in batch.tickets]
    assert len(taken) == len(set(taken))
    assert sum(len(b.tickets) + b.dropped for b in used) == (used[-1].drawn if used else 0)
    assert used or max_rounds * step_units > 200


@given(st.integers(1, 4), st.sampled_from([0.0, 0.4]), st.integers(0, 1000), st.integers(0, 1000))
def test_on_policy_steps_do_not_depend_on_what_finishes_when(step_units, drop_rate, one, other):
    def steps(seed: int) -> list[tuple[int, ...]]:
        order, plan, found = random.Random(seed), schedule(step_units, max_rounds=4), []
        open_units: list[int] = []
        while len(found) < 8:
            open_units += admitted(plan)
            ticket = open_units.pop(order.randrange(len(open_units)))
            dropped = random.Random(ticket).random() < drop_rate
            plan.finish(ticket, AGREEING if dropped else KEPT, str(ticket), version=len(found))
            if batch := plan.take(len(found)):
                found.append(batch.tickets)
                plan.trained()
        return found

    assert steps(one) == steps(other)
