"""Rates in any minute, pauses for all, and how much is in flight."""

import asyncio
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from synthesis_samples import Clock

from synthesis.pacing import START, Pace, Rate, backoff_s

HOUR_S, MINUTE_S = 3600.0, 60.0


def make_pace(clock, most=64, requests=None, tokens=None):
    return Pace(
        max_in_flight=most,
        requests_per_minute=requests,
        tokens_per_minute=tokens,
        clock=clock,
        sleep=clock.sleep,
    )


def most_in_a_minute(sent: list[tuple[float, float]]) -> float:
    """Of any 60 s, half open; `sent` holds times and amounts."""
    most, total, first = 0.0, 0.0, 0
    for at_s, amount in sent:
        total += amount
        while sent[first][0] + MINUTE_S <= at_s:
            total -= sent[first][1]
            first += 1
        most = max(most, total)
    return most


def take_for(rate, clock, amounts, until_s):
    sent = []
    while clock.now_s < until_s:
        amount = amounts()
        while (wait_s := rate.wait_s(amount)) > 0:
            clock.now_s += wait_s
        if clock.now_s < until_s:
            rate.take(amount)
            sent.append((clock.now_s, amount))
    return sent


@pytest.mark.parametrize("per_minute", [0.5, 1, 7, 60, 90.5, 600, 5000])
def test_no_minute_of_an_hour_has_more_requests_than_the_rate_and_all_have_nearly_so_many(
    per_minute,
):
    clock = Clock()
    simulated_s = min(HOUR_S, 20_000 / per_minute * MINUTE_S)
    sent = take_for(Rate(per_minute, clock), clock, lambda: 1.0, 1000.0 + simulated_s)
    assert most_in_a_minute(sent) <= max(1, per_minute)
    assert len(sent) >= 0.97 * int(per_minute) * simulated_s / MINUTE_S
    if per_minute < 1:
        gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(sent)]
        assert min(gaps) >= MINUTE_S / per_minute


@pytest.mark.parametrize("per_minute", [9_000, 60_000, 2_000_000])
def test_no_minute_of_an_hour_has_more_tokens_than_the_rate(per_minute):
    clock, rng = Clock(), random.Random(1)
    amounts = lambda: rng.choice((150.5, 900.0, 2500.25, 6000.0))  # noqa: E731
    sent = take_for(Rate(per_minute, clock), clock, amounts, 1000.0 + HOUR_S / 8)
    assert most_in_a_minute(sent) <= per_minute * (1 + 1e-6)
    assert sum(amount for _, amount in sent) > 0.6 * per_minute * HOUR_S / 8 / MINUTE_S


def test_a_request_of_more_tokens_than_a_minute_has_is_sent_alone():
    clock = Clock()
    rate = Rate(1000.0, clock)
    rate.take(10.0)
    assert rate.wait_s(5000.0) == MINUTE_S
    clock.now_s += MINUTE_S
    assert rate.wait_s(5000.0) == 0
    rate.take(5000.0)
    assert rate.wait_s(1.0) > MINUTE_S  # all of it is waited for


def test_a_correction_counts_in_the_minute_it_was_taken_in():
    clock = Clock()
    rate = Rate(6000.0, clock)
    taken = rate.take(100.0)
    rate.correct(taken, 5900.0)  # it was far more than was thought
    clock.now_s += 59.9
    assert rate.wait_s(200.0) == pytest.approx(0.1)
    assert rate.wait_s(50.0) == 0
    clock.now_s += 0.1
    assert rate.wait_s(200.0) == 0
    rate.correct(taken, 0.0)  # long after its minute
    rate.take(5950.0)
    clock.now_s += 59.0
    assert rate.wait_s(100.0) == pytest.approx(1.0)


async def test_many_tasks_keep_to_requests_and_tokens_a_minute():
    clock = Clock()
    pace = make_pace(clock, requests=120, tokens=40_000)
    sent = []

    async def one(number):
        async with pace.slot():
            taken = await pace.take(400.0)
            sent.append((clock.now_s, 1.0, 300.0 + number % 200))
            await clock.sleep(2.0)
            pace.correct(taken, 300.0 + number % 200)
            pace.succeeded()

    await clock.run(asyncio.gather(*(one(number) for number in range(400))))
    assert len(sent) == 400
    assert most_in_a_minute([(at_s, one) for at_s, one, _ in sent]) <= 120
    assert (
        most_in_a_minute([(at_s, tokens) for at_s, _, tokens in sent]) <= 40_000 * 1.05
    )  # they were underrated
    assert clock.now_s - 1000 < 1.1 * 400 / 100 * MINUTE_S  # 100 of 400 tokens a minute


async def test_requests_are_sent_in_the_order_in_which_they_came():
    clock = Clock()
    pace = make_pace(clock, requests=60, tokens=6000)
    order = []

    async def one(number):
        async with pace.slot():
            await pace.take(5000.0 if number == 2 else 10.0)  # a big one is not passed by
            order.append(number)

    await clock.run(asyncio.gather(*(one(number) for number in range(8))))
    assert order == list(range(8))


async def test_a_pause_holds_all_until_it_is_over_and_the_longest_counts():
    clock = Clock()
    pace = make_pace(clock)
    pace.overloaded(clock.now_s, 30.0)
    pace.overloaded(clock.now_s, 5.0)
    sent = []

    async def one():
        async with pace.slot():
            await pace.take(1.0)
            sent.append(clock.now_s)

    await clock.run(asyncio.gather(*(one() for _ in range(5))))
    assert sent == [pytest.approx(1030.0)] * 5


def test_one_round_cuts_once_and_each_later_round_again():
    clock = Clock()
    pace = make_pace(clock)
    pace.limit = 40.0
    for _ in range(40):  # all of one round
        pace.overloaded(clock.now_s - 1, None)
    assert pace.limit == pytest.approx(28.0)
    began_s = clock.now_s + 1
    clock.now_s += 2
    pace.overloaded(began_s, None)
    pace.overloaded(began_s, None)
    assert pace.limit == pytest.approx(19.6)
    for _ in range(100):
        clock.now_s += 1
        pace.overloaded(clock.now_s, None)
    assert pace.limit == 1.0


def test_it_doubles_in_each_round_until_the_first_overload_then_grows_by_one():
    clock = Clock()
    pace = make_pace(clock, most=300)
    assert pace.limit == START
    for _ in range(START):
        pace.succeeded()
    assert pace.limit == 2 * START
    pace.overloaded(clock.now_s, None)
    before = pace.limit
    for _ in range(round(before)):
        pace.succeeded()
    assert before + 0.9 < pace.limit <= before + 1
    for _ in range(10**5):
        pace.succeeded()
    assert pace.limit == 300
    assert make_pace(clock, most=3).limit == 3


async def test_what_is_in_flight_finds_the_room_that_a_service_has():
    clock, room = Clock(), 20
    pace = make_pace(clock, most=200)
    served = refused = in_flight = 0
    recent = []

    async def one():
        nonlocal served, refused, in_flight
        while True:
            async with pace.slot():
                await pace.take(1.0)
                began_s, is_refused = clock.now_s, in_flight >= room
                in_flight += 1
                recent.append(in_flight)
                try:
                    await clock.sleep(0.01 if is_refused else 1.0)
                finally:
                    in_flight -= 1
                if not is_refused:
                    pace.succeeded()
                    served += 1
                    return
                refused += 1
                pace.overloaded(began_s, None)

    await clock.run(asyncio.gather(*(one() for _ in range(2000))))
    assert served == 2000
    assert refused < 0.15 * served
    assert 0.7 * room < sum(recent[-500:]) / 500 < 1.2 * room


Step = st.tuples(
    st.sampled_from(["answer", "overload", "pause", "cancel", "doubt"]),
    st.floats(0.0, 3.0),
)


@given(st.lists(Step, min_size=1, max_size=40), st.integers(1, 12), st.booleans())
@hypothesis_settings(max_examples=60)
def test_nobody_waits_for_ever_whatever_happens(steps, most, has_rate):
    async def drive():
        clock = Clock()
        pace = make_pace(clock, most, 120 if has_rate else None, 10_000 if has_rate else None)
        done = []

        async def one(what, length_s):
            async with pace.slot():
                began_s = clock.now_s
                taken = await pace.take(50.0)
                await clock.sleep(length_s)
                if what == "answer":
                    pace.succeeded()
                    pace.correct(taken, 80.0)
                elif what in ("overload", "pause"):
                    pace.overloaded(began_s, length_s if what == "pause" else None)
                assert pace.in_flight <= most
            done.append(what)

        async def all_of_them():
            tasks = [asyncio.ensure_future(one(*step)) for step in steps]
            for (what, length_s), task in zip(steps, tasks, strict=True):
                if what == "cancel":
                    await clock.sleep(length_s / 10)
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await one("answer", 0.0)  # there is room for one more

        await clock.run(all_of_them())
        assert pace.in_flight == 0
        assert len(done) > sum(what != "cancel" for what, _ in steps)

    asyncio.run(drive())


async def test_a_cancelled_waiter_passes_its_room_on():
    clock = Clock()
    pace = make_pace(clock, most=1)
    order = []

    async def one(name):
        async with pace.slot():
            order.append(name)
            await clock.sleep(1.0)

    async def drive():
        tasks = [asyncio.ensure_future(one(name)) for name in "abcd"]
        await clock.sleep(0.5)
        tasks[1].cancel()  # waits
        await asyncio.wait({tasks[0]})
        tasks[2].cancel()  # has just been told that there is room
        await asyncio.gather(*tasks, return_exceptions=True)

    await clock.run(drive())
    assert order in (["a", "d"], ["a", "c", "d"])
    assert pace.in_flight == 0


def test_back_off_doubles_up_to_its_bound_and_is_spread():
    rng = random.Random(0)
    for failures in range(1, 60):
        longest_s = min(60.0, 0.5 * 2 ** (failures - 1))
        drawn = [backoff_s(failures, 60.0, rng) for _ in range(50)]
        assert all(longest_s / 2 <= each <= longest_s for each in drawn)
        assert len(set(drawn)) > 40
