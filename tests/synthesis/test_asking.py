"""One teacher: asked for nothing twice, again where it fails, little before it is known."""

import asyncio
import itertools

import pytest
from synthesis_samples import (
    PRICE,
    Clock,
    FakeService,
    make_asker,
    sample_answer,
    sample_request,
)

from judging.errors import ConfigurationError, InfrastructureError
from synthesis.asking import OUTAGE, Probation, TryFailed, check_all
from synthesis.budget import Budget
from synthesis.ledger import Ledger
from synthesis.records import RequestFailed, Spent, Usage
from synthesis.settings import Teacher


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


@pytest.fixture
def clock():
    return Clock()


def teacher(**changes):
    return Teacher(**{"uses": "openai", "model": "m", "base_url": "http://127.0.0.1:1", **changes})


def spent(ledger):
    (found,) = ledger.spending()
    return found


def always(answer=None):
    return FakeService(lambda request, number: answer or sample_answer())


def failing(times, error):
    return FakeService(lambda request, number: error if number <= times else sample_answer())


async def test_what_is_answered_is_not_asked_again(ledger, clock):
    service = always()
    asker = make_asker(service, ledger, clock)
    found = [await clock.run(asker.ask(sample_request())) for _ in range(3)]
    again = make_asker(service, ledger, clock)  # of another driver
    found.append(await clock.run(again.ask(sample_request())))
    assert found == [sample_answer()] * 4
    assert service.asked == ["key"]
    assert service.written_down == ["key"]
    assert spent(ledger).cost_nusd == 10 * 3000 + 20 * 15000


async def test_the_same_request_of_two_pairs_at_once_is_sent_once_and_answered_alike(ledger, clock):
    service = FakeService(lambda request, number: sample_answer(f"answer {number}"))
    asker = make_asker(service, ledger, clock)
    other = make_asker(service, ledger, clock, name="same model")
    both = (asker.ask(sample_request()), asker.ask(sample_request()), other.ask(sample_request()))
    found = await clock.run(asyncio.gather(*both))
    assert [each.text for each in found] == ["answer 1"] * 3
    assert service.asked == ["key"]


async def test_what_a_run_before_has_paid_for_costs_nothing(tmp_path, clock):
    service = always()
    request = sample_request()
    with (
        Ledger(tmp_path / "cache.sqlite", is_shared=True) as cache,
        Ledger(tmp_path / "one.sqlite") as one,
        Ledger(tmp_path / "other.sqlite") as other,
    ):
        await clock.run(make_asker(service, one, clock, cache=cache).ask(request))
        budget = Budget(1e-9, 1, spent_nusd=0, requests=1)  # nothing may be sent
        asker = make_asker(service, other, clock, cache=cache, budget=budget)
        assert await clock.run(asker.ask(request)) == sample_answer()
        assert service.asked == ["key"]
        found = spent(other)
        assert (found.answers, found.tries, found.cost_nusd, found.from_cache) == (0, 0, 0, 1)
        assert (found.input_tokens, found.output_tokens) == (0, 0)
        assert spent(one).cost_nusd == budget.spent_nusd + 330_000


async def test_what_came_for_a_driver_that_died_is_in_the_cache_too(tmp_path, clock):
    with (
        Ledger(tmp_path / "cache.sqlite", is_shared=True) as cache,
        Ledger(tmp_path / "one.sqlite") as one,
    ):
        asker = make_asker(always(), one, clock, cache=cache)
        await clock.run(asker.take_up("k", sample_answer(), "m", PRICE))
        assert await cache.find("k") == await one.find("k") == sample_answer()


async def test_a_try_that_failed_is_repeated_with_longer_and_longer_waits(ledger, clock):
    service = failing(5, TryFailed("status 500"))
    asker = make_asker(service, ledger, clock, settings=teacher(max_backoff_s=4.0))
    assert await clock.run(asker.ask(sample_request())) == sample_answer()
    assert len(service.asked) == 6
    for waited_s, longest_s in zip(clock.slept, (0.5, 1.0, 2.0, 4.0, 4.0), strict=True):
        assert longest_s / 2 <= waited_s <= longest_s
    assert (spent(ledger).tries, spent(ledger).in_doubt, spent(ledger).answers) == (6, 0, 1)


async def test_after_max_tries_it_is_given_up_with_the_last_reason(ledger, clock):
    service = failing(99, TryFailed("status 502: bad gateway"))
    asker = make_asker(service, ledger, clock, settings=teacher(max_tries=3))
    with pytest.raises(RequestFailed, match=r"3 tries .*\(max_tries\); the last: status 502: bad"):
        await clock.run(asker.ask(sample_request()))
    assert len(service.asked) == 3
    assert (spent(ledger).cost_nusd, spent(ledger).in_doubt) == (0, 0)


async def test_a_service_that_answers_nobody_ends_the_phase_instead_of_failing_all_pairs(
    ledger, clock
):
    service = failing(10**6, TryFailed("status 502"))
    asker = make_asker(service, ledger, clock, settings=teacher(max_tries=2))
    for number in range(OUTAGE - 1):
        with pytest.raises(RequestFailed):
            await clock.run(asker.ask(sample_request(f"{number}")))
    with pytest.raises(InfrastructureError, match="did not answer 10 requests in a row"):
        await clock.run(asker.ask(sample_request("last")))


async def test_a_refused_request_is_not_repeated(ledger, clock):
    service = failing(99, RequestFailed("status 400"))
    with pytest.raises(RequestFailed, match="status 400"):
        await clock.run(make_asker(service, ledger, clock).ask(sample_request()))
    assert len(service.asked) == 1
    assert spent(ledger).in_doubt == 0


async def test_a_try_that_may_have_been_answered_stays_open(ledger, clock):
    service = failing(99, TryFailed("no answer within 1 s", is_in_doubt=True))
    asker = make_asker(service, ledger, clock, settings=teacher(max_tries=2))
    with pytest.raises(RequestFailed):
        await clock.run(asker.ask(sample_request()))
    assert (spent(ledger).in_doubt, spent(ledger).tries) == (1, 2)


async def test_overload_slows_all_down_and_is_waited_for_as_long_as_is_asked(ledger, clock):
    overload = TryFailed("status 429", is_overload=True, retry_after_s=20.0)
    service = failing(1, overload)
    asker = make_asker(service, ledger, clock)
    began_s = clock.now_s
    first = asker.ask(sample_request("a"))
    await clock.run(first)
    assert clock.now_s - began_s == pytest.approx(20.0, abs=1.0)
    assert asker.pace.limit < 8
    # A pause that is shorter than the back-off does not shorten it.
    service = failing(6, TryFailed("status 429", is_overload=True, retry_after_s=0.0))
    began_s = clock.now_s
    await clock.run(make_asker(service, ledger, clock).ask(sample_request("b")))
    assert clock.now_s - began_s > 0.5 * (0.5 + 1 + 2 + 4 + 8 + 16)


async def test_the_budget_bounds_what_many_ask_at_once(ledger, clock):
    def reply(request, number):
        return sample_answer(usage=Usage(30, 0, 100 if int(request.key) % 2 else 1))

    service = FakeService(reply)
    budget = Budget(0.02, None, spent_nusd=0, requests=0)
    asker = make_asker(service, ledger, clock, budget=budget)
    work = (asker.ask(sample_request(f"{number}")) for number in range(60))
    found = await clock.run(asyncio.gather(*work, return_exceptions=True))
    answers = [each for each in found if not isinstance(each, Exception)]
    assert {type(each) for each in found if isinstance(each, Exception)} == {Spent}
    assert spent(ledger).cost_nusd == budget.spent_nusd <= 0.02 * 10**9
    assert len(answers) == len(service.asked) == spent(ledger).answers
    assert budget.spent_nusd > 0.02 * 10**9 - 2 * 1_800_000  # the most that one request costs


async def test_requests_wait_for_the_rate_after_there_is_money_for_them(ledger, clock):
    """Else many would wait for money with a turn each, and be sent at once when there is some."""
    sent_at_s = []

    def reply(request, number):
        sent_at_s.append(clock.now_s)
        return sample_answer(usage=Usage(1, 0, 0))

    budget = Budget(0.0018, None, spent_nusd=0, requests=0)  # one at a time
    settings = teacher(requests_per_minute=60)
    asker = make_asker(FakeService(reply), ledger, clock, budget=budget, settings=settings)
    work = (asker.ask(sample_request(f"{number}")) for number in range(8))
    found = await clock.run(asyncio.gather(*work, return_exceptions=True))
    assert len(sent_at_s) >= 3
    gaps = [later - earlier for earlier, later in itertools.pairwise(sent_at_s)]
    assert all(gap > 0.99 for gap in gaps[1:])
    assert {type(each) for each in found} <= {type(sample_answer()), Spent}


async def test_what_came_for_a_driver_that_died_is_paid_for_once(ledger, clock):
    budget = Budget(1.0, None, spent_nusd=0, requests=0)
    service = always(sample_answer("asked anew"))
    asker = make_asker(service, ledger, clock, budget=budget)
    await ledger.begin("key", "strong", "m")  # by the driver that died
    left = sample_answer("left for the next one")
    for _ in range(2):
        await clock.run(asker.take_up("key", left, "m", PRICE))
    assert (await clock.run(asker.ask(sample_request()))).text == "left for the next one"
    assert service.asked == []
    assert budget.spent_nusd == spent(ledger).cost_nusd == 330_000
    assert (spent(ledger).tries, spent(ledger).in_doubt) == (1, 0)


# ---- probation -----------------------------------------------------------------------------------


async def assessed(asker, request, is_nonsense=False):
    await asker.ask(request)
    await asker.probation.assess(is_nonsense=is_nonsense)


async def test_no_more_are_sent_than_the_window_until_those_are_read(ledger, clock):
    service = always()
    gate = asyncio.Event()
    service.delay = gate.wait
    asker = make_asker(service, ledger, clock, probation=Probation("strong", 5, 0.5))
    work = asyncio.gather(*(assessed(asker, sample_request(f"{n}")) for n in range(40)))
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert len(service.asked) == 5
    gate.set()
    await clock.run(work)
    assert len(service.asked) == 40


async def test_a_teacher_of_nonsense_is_stopped_before_more_is_sent(ledger, clock):
    service = always()
    asker = make_asker(service, ledger, clock, probation=Probation("strong", 10, 0.5))

    async def drive():
        async with asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(assessed(asker, sample_request(f"{number}"), is_nonsense=True))

    with pytest.raises(ExceptionGroup) as caught:
        await clock.run(drive())
    error = caught.value.exceptions[0]
    assert isinstance(error, ConfigurationError)
    assert "synthesize.teachers.strong: 6 of its first 6 answers hold no verdict" in str(error)
    assert len(service.asked) <= 10


async def test_a_share_of_nonsense_that_is_allowed_stops_nothing(ledger, clock):
    asker = make_asker(always(), ledger, clock, probation=Probation("strong", 10, 0.5))
    work = (
        assessed(asker, sample_request(f"{n}"), is_nonsense=n < 5 or n >= 10) for n in range(60)
    )
    await clock.run(asyncio.gather(*work))
    assert spent(ledger).answers == 60


async def test_requests_that_fail_do_not_use_the_window_up(ledger, clock):
    service = FakeService(
        lambda request, number: (
            RequestFailed("no") if int(request.key) < 20 else sample_answer(request.key)
        )
    )
    asker = make_asker(service, ledger, clock, probation=Probation("strong", 4, 0.5))
    work = (assessed(asker, sample_request(f"{number}")) for number in range(40))
    found = await clock.run(asyncio.gather(*work, return_exceptions=True))
    assert [isinstance(each, RequestFailed) for each in found] == [True] * 20 + [False] * 20


async def test_answers_from_before_count_towards_the_window(ledger, clock):
    service = always()
    first = make_asker(service, ledger, clock)
    for number in range(6):
        await clock.run(first.ask(sample_request(f"{number}")))
    asker = make_asker(service, ledger, clock, probation=Probation("strong", 10, 0.5))
    for number in range(5):
        await clock.run(assessed(asker, sample_request(f"{number}"), is_nonsense=True))
    with pytest.raises(ConfigurationError, match="6 of its first 6"):
        await clock.run(assessed(asker, sample_request("5"), is_nonsense=True))
    assert len(service.asked) == 6


# ---- before the first request --------------------------------------------------------------------


async def test_a_service_that_does_not_say_whether_it_can_be_asked_is_named(ledger, clock):
    class Silent(FakeService):
        async def check(self):
            await asyncio.sleep(60)

    asker = make_asker(always(), ledger, clock)
    silent = make_asker(Silent(lambda request, number: sample_answer()), ledger, clock, name="mute")
    await check_all([asker], 5)
    with pytest.raises(InfrastructureError, match=r"synthesize\.teachers\.mute: http://127"):
        await check_all([asker, silent], 0.01)
