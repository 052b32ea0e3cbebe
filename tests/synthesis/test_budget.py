"""What is spent never exceeds its bound, in whatever order answers come."""

import asyncio
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from synthesis_samples import Clock

from judging.records import Message
from synthesis.budget import Budget, cost_nusd, most_usage, price_of
from synthesis.ledger import NUSD
from synthesis.records import Spent, Usage
from synthesis.settings import Price


def make_budget(max_cost_usd=None, max_requests=None, spent_nusd=0, requests=0):
    return Budget(max_cost_usd, max_requests, spent_nusd=spent_nusd, requests=requests)


Request = st.tuples(
    st.integers(0, 10**6),  # at most, nano-dollars
    st.floats(0, 1),  # the share of it that it costs
    st.floats(0, 3),  # seconds
    st.booleans(),  # whether it fails, and costs nothing
)


@given(
    st.lists(Request, min_size=1, max_size=50),
    st.integers(1, 5 * 10**6),
    st.integers(0, 10**6),
    st.one_of(st.none(), st.integers(1, 40)),
)
@hypothesis_settings(max_examples=150)
def test_it_is_never_exceeded_and_nobody_gives_up_while_room_may_come(
    requests, bound, spent, max_requests
):
    async def drive():
        clock = Clock()
        budget = make_budget(bound / NUSD, max_requests, spent_nusd=spent)
        sent = in_flight = 0

        async def one(most, share, length_s, fails):
            nonlocal sent, in_flight
            try:
                async with budget.room(most):
                    sent += 1
                    in_flight += most
                    assert budget.spent_nusd + in_flight <= bound
                    assert max_requests is None or sent <= max_requests
                    await clock.sleep(length_s)
                    in_flight -= most
                    if fails:
                        raise ConnectionError
                    budget.spend(int(share * most))
            except ConnectionError:
                pass
            except Spent:  # only where it can never be had
                is_full = max_requests is not None and sent >= max_requests
                assert is_full or budget.spent_nusd + most > bound

        await clock.run(asyncio.gather(*(one(*request) for request in requests)))
        assert in_flight == 0

    asyncio.run(drive())


async def test_the_last_dollar_waits_for_what_is_in_flight():
    clock, budget, order = Clock(), make_budget(10.0), []

    async def one(name, most_usd, costs_usd, length_s):
        async with budget.room(most_usd * NUSD):
            order.append(name)
            await clock.sleep(length_s)
            budget.spend(costs_usd * NUSD)

    jobs = [("a", 6, 1, 5.0), ("b", 4, 1, 9.0), ("c", 8, 1, 1.0), ("d", 7, 7, 1.0)]
    await clock.run(asyncio.gather(*(one(*job) for job in jobs)))
    assert order[:2] == ["a", "b"]
    assert sorted(order) == list("abcd")
    assert budget.spent_nusd == 10 * NUSD
    with pytest.raises(Spent, match=r"\$10.0000 of synthesize.max_cost_usd \(\$10.0000\)"):
        async with budget.room(1):
            pass


async def test_one_that_is_cancelled_gives_its_room_back():
    budget = make_budget(1.0)

    async def one():
        async with budget.room(NUSD):
            await asyncio.sleep(0)
            return "had"

    async def hold():
        async with budget.room(NUSD):
            await asyncio.sleep(60)

    holding = asyncio.ensure_future(hold())
    await asyncio.sleep(0)
    waiting = [asyncio.ensure_future(one()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    holding.cancel()
    found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
    assert found[1:] == ["had", "had"]


async def test_tries_are_counted_with_those_of_the_drivers_before():
    budget = make_budget(max_requests=5, requests=3)
    for _ in range(2):
        async with budget.room(0):
            pass
    with pytest.raises(Spent, match=r"max_requests \(5\)"):
        async with budget.room(0):
            pass


Dollars = st.decimals(0, 200, places=3, allow_nan=False)
Count = st.integers(0, 10**8)


@given(Dollars, Dollars, st.one_of(st.none(), Dollars), Count, Count, Count)
def test_costs_are_exact_to_the_nano_dollar(input_usd, output_usd, cached_usd, fresh, cached, out):
    price = Price(
        input_usd_per_million=float(input_usd),
        output_usd_per_million=float(output_usd),
        cached_input_usd_per_million=None if cached_usd is None else float(cached_usd),
    )
    usage = Usage(fresh + cached, cached, out)
    of_cached = input_usd if cached_usd is None else cached_usd
    nusd_per_token = [Fraction(each) * 1000 for each in (input_usd, of_cached, output_usd)]
    exact = sum(
        each * count for each, count in zip(nusd_per_token, (fresh, cached, out), strict=True)
    )
    assert exact.denominator == 1  # three places of a dollar per million
    assert cost_nusd(usage, price, is_batch=False) == exact
    assert 0 <= cost_nusd(usage, price, is_batch=True) - exact / 2 < 1  # rounded up


def test_a_batch_is_cheaper_by_the_discount_and_no_price_costs_nothing():
    price = Price(input_usd_per_million=3, output_usd_per_million=15, batch_discount=0.25)
    usage = Usage(1000, 0, 100)
    assert cost_nusd(usage, price, is_batch=False) == 4_500_000
    assert cost_nusd(usage, price, is_batch=True) == 3_375_000
    assert cost_nusd(usage, None, is_batch=True) == 0
    assert price_of({"m": price}, "m") is price
    assert price_of({"m": price}, "other") is price_of({"m": price}, None) is price_of(None, "m")


@pytest.mark.parametrize("text", ["plain words here", "0123456789" * 20, "漢字かな", "🦜🪶🫧" * 9])
def test_no_tokenizer_makes_more_of_a_prompt_than_is_set_apart(text):
    usage = most_usage((Message("system", text), Message("user", text)), 77)
    assert usage.input_tokens >= 2 * len(text.encode())
    assert usage.output_tokens == 77
