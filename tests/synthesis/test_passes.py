"""Passes over pairs: who is asked, what is kept, and one outcome for each pair."""

import asyncio
import random
from collections import Counter

import pytest
from synthesis_samples import (
    PRICE,
    Clock,
    FakeService,
    judgment,
    make_asker,
    sample_answer,
    sample_outcome,
    sample_pair,
)

from judging.errors import ConfigurationError, InfrastructureError
from judging.presentation import balanced_order
from judging.prompts import load_template
from judging.records import PreferencePair, Presentation, pair_uid
from judging.verification import TraceChecks
from synthesis.asking import Probation, TryFailed
from synthesis.budget import Budget
from synthesis.ledger import Ledger
from synthesis.passes import Synthesis
from synthesis.records import RequestFailed
from synthesis.settings import Pass, SynthesizeSettings, Teacher
from synthesis.tally import Tally

PAIRS = [sample_pair(number) for number in range(12)]
SEED = 3
ONE, TOLD = Pass(teacher="strong"), Pass(teacher="strong", tells_verdict=True)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


def synthesis(ledger, clock, services, *passes, budget=None, windows=None, **changes):
    """`services`: name -> service, of the teachers that `passes` name."""
    template = load_template("reasoning")
    told = load_template("corrected", parent="reasoning")
    scorer = changes.pop("scorer", None)
    settings = SynthesizeSettings(
        teachers={
            name: Teacher(uses="openai", model=name, base_url="http://h", max_new_tokens=100)
            for name in services
        },
        passes=passes,
        checks=changes.pop("checks", TraceChecks(weights=False, grammar=False)),
        **changes,
    )
    budget = budget or Budget(None, None, spent_nusd=0, requests=0)
    askers = {
        name: make_asker(
            service,
            ledger,
            clock,
            name=name,
            settings=settings.teachers[name],
            budget=budget,
            price=PRICE,
            probation=Probation(name, (windows or {}).get(name, 0), 0.5),
        )
        for name, service in services.items()
    }
    templates = [told if each.tells_verdict else template for each in passes]
    return Synthesis(settings, askers, templates, ledger, seed=SEED, scorer=scorer)


def says(choose):
    """A service whose answer to a request is what `choose(request, gold letter)` writes."""

    def reply(request, number):
        found = choose(request, request.presentation.gold)
        return found if isinstance(found, Exception) else sample_answer(found)

    return FakeService(reply)


def other(letter):
    return "B" if letter == "A" else "A"


def number_of(request):
    return int(request.presentation.pair.conversation[0].content.split()[2])


def states(ledger):
    return {outcome.pair_uid: outcome.state for outcome in ledger.outcomes()}


def kept_texts(ledger, pair):
    outcome = ledger.outcome(pair.uid)
    return [ledger.text_of(attempt.key) for attempt in outcome.attempts if attempt.is_kept]


async def test_the_second_pass_is_shown_the_verdict_and_the_trace_that_failed(ledger, clock):
    seen = []

    def first(request, gold):
        assert request.verdict is None
        assert request.failed_trace is None
        return judgment(gold if number_of(request) % 3 else other(gold), f"{number_of(request)}!")

    def second(request, gold):
        seen.append(request)
        return judgment(gold) if number_of(request) else "I cannot say."

    services = {"weak": says(first), "strong": says(second)}
    work = synthesis(ledger, clock, services, Pass(teacher="weak"), TOLD)
    await clock.run(work.run(PAIRS))
    assert sorted(map(number_of, seen)) == [0, 3, 6, 9]
    for request in seen:
        gold, prompt = request.presentation.gold, request.messages[-1].content
        assert request.verdict == gold
        assert request.failed_trace == judgment(other(gold), f"{number_of(request)}!")
        assert f"{number_of(request)}!" in prompt
        assert f"[[{gold}]]" in prompt
    assert Counter(states(ledger).values()) == {"kept": 11, "rejected": 1}
    tally = Tally.of(ledger.outcomes())
    assert (tally.passes["sums", 1].asked, tally.passes["sums", 1].kept) == (12, 8)
    assert (tally.passes["sums", 2].asked, tally.passes["sums", 2].kept) == (4, 3)
    assert tally.rejections == {"wrong_verdict": 4, "no_verdict": 1}
    assert tally.metrics()["synthesis/kept/sums/pass_2"] == 0.75
    assert tally.metrics()["synthesis/kept"] == 11 / 12
    assert len(services["weak"].asked) == 12  # nobody else was asked twice


async def test_a_third_pass_is_given_what_failed_last(ledger, clock):
    failed = []

    def choose(request, gold):
        failed.append(request.failed_trace)
        return judgment(other(gold), f"try {len(failed)}") if len(failed) < 3 else judgment(gold)

    work = synthesis(ledger, clock, {"strong": says(choose)}, Pass(teacher="strong"), TOLD, TOLD)
    await clock.run(work.run(PAIRS[:1]))
    assert failed[0] is None
    assert [f"try {number}" in text for number, text in enumerate(failed[1:], 1)] == [True, True]
    assert states(ledger) == {PAIRS[0].uid: "kept"}


async def test_each_pair_is_shown_in_the_order_that_seed_and_pair_decide(ledger, clock):
    service = says(lambda request, gold: judgment(gold))
    await clock.run(synthesis(ledger, clock, {"strong": service}, ONE).run(PAIRS))
    orders = {o.pair_uid: [a.order for a in o.attempts] for o in ledger.outcomes()}
    assert orders == {pair.uid: [balanced_order(pair.uid, SEED)] for pair in PAIRS}
    assert len({order for (order,) in orders.values()}) == 2


async def test_of_both_orders_a_pair_must_be_right_in_both(ledger, clock):
    """A teacher that always says A is right in one order of each, and worth nothing."""
    service = says(lambda request, gold: judgment("A" if number_of(request) < 6 else gold))
    await clock.run(synthesis(ledger, clock, {"strong": service}, ONE, order="both").run(PAIRS))
    found = states(ledger)
    assert [found[pair.uid] for pair in PAIRS] == ["rejected"] * 6 + ["kept"] * 6
    for pair in PAIRS[6:]:
        attempts = ledger.outcome(pair.uid).attempts
        assert sorted(a.order for a in attempts if a.is_kept) == ["chosen_first", "rejected_first"]
    for pair in PAIRS[:6]:  # nothing of half a pair
        assert not any(attempt.is_kept for attempt in ledger.outcome(pair.uid).attempts)


async def test_both_orders_may_be_kept_in_different_passes(ledger, clock):
    first = says(lambda request, gold: judgment("A"))
    second = says(lambda request, gold: judgment(gold))
    passes = (Pass(teacher="weak"), TOLD)
    work = synthesis(ledger, clock, {"weak": first, "strong": second}, *passes, order="both")
    await clock.run(work.run(PAIRS[:2]))
    assert set(states(ledger).values()) == {"kept"}
    assert len(second.asked) == 2  # about the order that failed alone
    for pair in PAIRS[:2]:
        kept = [(a.number, a.order) for a in ledger.outcome(pair.uid).attempts if a.is_kept]
        assert sorted(kept) == [(1, "chosen_first"), (2, "rejected_first")]


SAMPLES = ["wrong", "long and sound", "short", "short", "wrong again", "longest and sound of all"]


def one_of_samples(request, gold):
    text = SAMPLES[request.sample]
    return judgment(other(gold) if "wrong" in text else gold, text)


async def score_by_length(shown, answers):
    return [float(len(answer.text)) for answer in answers]


async def score_none(shown, answers):
    return [None] * len(answers)


async def score_alike_but_first(shown, answers):
    return [None] + [1.0] * (len(answers) - 1)


@pytest.mark.parametrize(
    ("keep", "scorer", "kept"),
    [
        ("first", None, [1]),
        ("shortest", None, [2]),
        ("all", None, [1, 2, 5]),
        ("reward", score_by_length, [5]),
        ("reward", score_alike_but_first, [2]),
        ("reward", score_none, []),
    ],
)
async def test_of_the_samples_the_best_is_kept_and_no_text_twice(ledger, clock, keep, scorer, kept):
    several = Pass(teacher="strong", samples=len(SAMPLES))
    service = says(one_of_samples)
    work = synthesis(ledger, clock, {"strong": service}, several, keep=keep, scorer=scorer)
    await clock.run(work.run(PAIRS[:3]))
    for pair in PAIRS[:3]:
        outcome = ledger.outcome(pair.uid)
        assert [a.sample for a in outcome.attempts if a.is_kept] == kept
        assert outcome.state == ("kept" if kept else "rejected")
        assert len({attempt.key for attempt in outcome.attempts}) == len(SAMPLES)


async def test_where_no_teacher_answers_it_failed_and_one_answer_makes_it_rejected(ledger, clock):
    def weak(request, gold):
        return RequestFailed("status 400") if number_of(request) < 4 else judgment(other(gold))

    strong = says(lambda request, gold: RequestFailed(f"no {number_of(request)}"))
    passes = (Pass(teacher="weak"), TOLD)
    work = synthesis(ledger, clock, {"weak": says(weak), "strong": strong}, *passes)
    await clock.run(work.run(PAIRS))
    found = states(ledger)
    assert [found[pair.uid] for pair in PAIRS] == ["failed"] * 4 + ["rejected"] * 8
    errors = [attempt.error for attempt in ledger.outcome(PAIRS[2].uid).attempts]
    assert errors == ["status 400", "no 2"]
    tally = Tally.of(ledger.outcomes())
    assert tally.errors == 16


async def test_errors_of_one_teacher_do_not_lose_the_answers_of_others(ledger, clock):
    weak = says(lambda request, gold: judgment(gold if number_of(request) % 2 else other(gold)))
    strong = FakeService(lambda request, number: TryFailed("status 500"))
    work = synthesis(ledger, clock, {"weak": weak, "strong": strong}, Pass(teacher="weak"), TOLD)
    await clock.run(work.run(PAIRS))
    assert Counter(states(ledger).values()) == {"kept": 6, "rejected": 6}
    assert {len(ledger.outcome(pair.uid).attempts) for pair in PAIRS[::2]} == {2}


async def test_an_outage_costs_no_pair_when_the_phase_is_begun_anew(ledger, clock):
    """Those that were given up before it was known for an outage are asked about again."""
    weak = says(lambda request, gold: judgment(gold if number_of(request) % 2 else other(gold)))
    is_back = False

    def strong(request, number):
        return sample_answer(judgment(request.verdict)) if is_back else TryFailed("refused")

    services = {"weak": weak, "strong": FakeService(strong)}
    more = [sample_pair(number) for number in range(60)]
    work = synthesis(ledger, clock, services, Pass(teacher="weak"), TOLD)
    with pytest.raises(InfrastructureError, match="did not answer 10 requests in a row"):
        await clock.run(work.run(more))
    await ledger.find("")  # after all that was still to be written
    before = states(ledger)
    assert "rejected" in before.values()  # one answer was wrong, the second never came

    is_back = True
    reopened = ledger.reopen_unanswered()
    assert reopened == Counter(before.values())["rejected"]
    assert set(states(ledger).values()) == {"kept"}
    await clock.run(synthesis(ledger, clock, services, Pass(teacher="weak"), TOLD).run(more))
    assert Counter(states(ledger).values()) == {"kept": 60}
    assert len(weak.asked) == len(set(weak.asked)) == 60
    assert ledger.reopen_unanswered() == 0


async def test_what_is_answered_is_decided_though_the_money_is_spent(ledger, clock):
    service = says(lambda request, gold: judgment(gold))
    await clock.run(synthesis(ledger, clock, {"strong": service}, ONE).run(PAIRS))
    ledger.decide_by("other checks")  # all is to be decided anew
    ledger.decide_by("again other ones")
    assert states(ledger) == {}
    sent = Budget(None, len(PAIRS), spent_nusd=0, requests=len(PAIRS))
    new = sample_pair(100)
    work = synthesis(ledger, clock, {"strong": service}, ONE, budget=sent)
    await clock.run(work.run([new, *PAIRS]))
    assert work.spent is not None
    assert states(ledger) == {new.uid: "unasked", **{pair.uid: "kept" for pair in PAIRS}}
    assert len(service.asked) == len(PAIRS)


async def test_what_a_teacher_refused_stays_decided(ledger, clock):
    service = says(lambda request, gold: RequestFailed('status 400: "is_unanswered": true'))
    await clock.run(synthesis(ledger, clock, {"strong": service}, ONE).run(PAIRS))
    assert ledger.reopen_unanswered() == 0
    assert len(states(ledger)) == len(PAIRS)


async def test_nonsense_ends_the_phase_and_decides_nothing(ledger, clock):
    service = says(lambda request, gold: "I would rather not say.")
    work = synthesis(ledger, clock, {"strong": service}, ONE, windows={"strong": 6})
    with pytest.raises(ConfigurationError, match="4 of its first 4 answers hold no verdict"):
        await clock.run(work.run(PAIRS))
    assert len(service.asked) <= 6
    assert len(states(ledger)) < 6


async def test_a_teacher_that_refuses_nearly_all_ends_the_phase_instead_of_failing_all_pairs(
    ledger, clock
):
    service = says(lambda request, gold: RequestFailed("status 400: no such parameter"))
    work = synthesis(ledger, clock, {"strong": service}, ONE, windows={"strong": 6})
    with pytest.raises(ConfigurationError, match=r"hold no verdict \(status 400: no such param"):
        await clock.run(work.run(PAIRS))
    assert len(states(ledger)) < 6


# ---- the budget ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "samples"), [("balanced", 1), ("both", 1), ("both", 3)])
async def test_pairs_for_which_there_is_no_money_are_unasked_and_what_was_asked_is_kept(
    ledger, clock, order, samples
):
    service = says(lambda request, gold: judgment(gold, f"sample {request.sample}"))
    service.delay = lambda: asyncio.sleep(0.1)
    budget = Budget(None, 17, spent_nusd=0, requests=0)
    several = Pass(teacher="strong", samples=samples)
    more = [*PAIRS, *(sample_pair(number) for number in range(100, 120))]
    work = synthesis(ledger, clock, {"strong": service}, several, budget=budget, order=order)
    await work.run(more)
    assert work.spent == "synthesize.max_requests (17) are sent"
    found = Counter(states(ledger).values())
    assert found["kept"] <= 17 // (samples * (2 if order == "both" else 1))
    assert set(found) == {"kept", "unasked"}
    assert found.total() == 32
    (spending,) = ledger.spending()
    # What was sent is waited for and written down, also where a sibling had no money left.
    assert spending.answers == spending.tries == len(service.asked) == 17
    assert spending.cost_nusd == budget.spent_nusd
    assert service.in_flight == 0


async def test_no_task_goes_on_when_it_has_ended(ledger, clock):
    service = says(lambda request, gold: judgment(gold, f"sample {request.sample}"))
    service.delay = lambda: asyncio.sleep(0.1)
    budget = Budget(None, 5, spent_nusd=0, requests=0)
    several = Pass(teacher="strong", samples=4)
    before = asyncio.all_tasks()
    work = synthesis(ledger, clock, {"strong": service}, several, budget=budget, order="both")
    await work.run(PAIRS)
    assert asyncio.all_tasks() == before


# ---- begun anew ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_begun_anew_at_any_moment_nothing_is_asked_twice_and_all_is_decided_once(
    tmp_path, seed
):
    rng, path = random.Random(seed), tmp_path / "ledger.sqlite"
    shown = Counter()

    def weak(request, gold):
        return judgment(gold if number_of(request) % 3 else other(gold), "w" * request.sample)

    services = {"weak": says(weak), "strong": says(lambda request, gold: judgment(gold))}
    passes = (Pass(teacher="weak", samples=2), TOLD)
    for attempt in range(12):
        clock = Clock()
        with Ledger(path) as ledger:
            work = synthesis(ledger, clock, services, *passes, order="both")
            work.show = lambda outcome: shown.update([outcome.pair_uid])
            running = asyncio.ensure_future(work.run(PAIRS))
            for _ in range(rng.randrange(40) if attempt < 11 else 10**6):
                await asyncio.sleep(0.0005 * rng.random())
                if running.done():
                    break
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    with Ledger(path) as ledger:
        assert states(ledger) == {pair.uid: "kept" for pair in PAIRS}
        answered = {a.key for outcome in ledger.outcomes() for a in outcome.attempts}
        spent = ledger.spending()
    assert set(shown.values()) == {1}
    assert sum(each.answers for each in spent) == len(answered)
    tries = Counter(services["weak"].asked + services["strong"].asked)
    assert set(tries) == answered
    # A fake service is not asked by another process: what is cancelled in flight is asked anew.
    assert sum(tries.values()) <= len(answered) + 12 * 2 * services["weak"].most_in_flight


async def test_pairs_that_are_decided_are_not_asked_about(ledger, clock):
    service = says(lambda request, gold: judgment(gold))
    for pair in PAIRS[:5]:
        await clock.run(ledger.decide(sample_outcome(pair.uid, "rejected")))
    await clock.run(synthesis(ledger, clock, {"strong": service}, ONE).run(PAIRS))
    assert len(service.asked) == 7
    assert Counter(states(ledger).values()) == {"rejected": 5, "kept": 7}


async def test_two_pairs_with_the_answers_swapped_are_each_verified_by_the_trace_that_stands(
    ledger, clock
):
    """Their prompts may be the same, and then their labels are at odds: one is kept at most."""
    pairs = []
    for number in range(40):
        pair = sample_pair(number)
        uid = pair_uid(pair.conversation, pair.rejected, pair.chosen)
        pairs += [pair, PreferencePair(uid, pair.conversation, pair.rejected, pair.chosen, "sums")]
    drawn = random.Random(1)
    service = says(lambda request, gold: judgment(drawn.choice("AB"), f"{drawn.random()}"))
    await clock.run(synthesis(ledger, clock, {"strong": service}, ONE, order="both").run(pairs))
    assert len(service.asked) == len(set(service.asked)) == 80
    for pair in pairs:
        outcome = ledger.outcome(pair.uid)
        for attempt in outcome.attempts:
            gold = "A" if attempt.order == "chosen_first" else "B"
            text = ledger.text_of(attempt.key)
            assert (f"[[{gold}]]" in text) == (not attempt.rejections)


async def test_what_a_model_thought_is_another_answer_than_without_it(ledger, clock):
    keys, shown = set(), Presentation(PAIRS[0], "chosen_first")
    for keep_reasoning in (False, True):
        work = synthesis(ledger, clock, {"strong": says(lambda request, gold: "")}, ONE)
        work.askers["strong"].settings = Teacher(
            uses="openai", model="m", base_url="http://h", keep_reasoning=keep_reasoning
        )
        (written,) = await work._one_pass(0, ONE, shown, None)
        keys.add(written.attempt.key)
    assert len(keys) == 2
