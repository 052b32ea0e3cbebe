import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judging.errors import DataError
from judging.presentation import both_orders
from judging.quickstart import KINDS, SOURCE, Problem, oracle_trace
from judging.quickstart_teacher import ErringOracle, problem_of, teach
from judging.records import Message, PreferencePair, Presentation, pair_uid
from judging.traces import parse_trace
from judging.verification import Rejection, TraceChecks, verify_trace

CHECKS = TraceChecks(weights=False)
PROBLEMS = [make(random.Random(seed)) for seed in range(200) for make in KINDS]


def pair_of(problem: Problem) -> PreferencePair:
    conversation = (Message("user", problem.question),)
    texts = problem.chosen.text, problem.rejected.text
    return PreferencePair(pair_uid(conversation, *texts), conversation, *texts, source=SOURCE)


def other(letter):
    return "B" if letter == "A" else "A"


def test_reads_every_kind_of_problem_back_from_its_texts_in_either_order():
    for problem in PROBLEMS:
        conversation = (Message("user", problem.question),)
        texts = problem.chosen.text, problem.rejected.text
        assert problem_of(conversation, texts) == problem
        assert problem_of(conversation, texts[::-1]) == problem


def test_writes_the_trace_of_the_oracle_in_both_orders():
    for problem in PROBLEMS:
        for shown in both_orders(pair_of(problem)):
            trace = teach(shown)
            assert trace == oracle_trace(problem, shown.order)
            assert verify_trace(shown, trace, checks=CHECKS, told_verdict=True)[1] == ()


def test_does_not_look_at_the_label():
    for problem in PROBLEMS[:60]:
        pair = pair_of(problem)
        mislabelled = replace(pair, chosen=pair.rejected, rejected=pair.chosen)
        assert teach(Presentation(pair, "chosen_first")) == teach(
            Presentation(mislabelled, "rejected_first")
        )


def test_told_the_gold_verdict_it_writes_the_same_trace():
    for shown in both_orders(pair_of(PROBLEMS[0])):
        assert teach(shown, letter=shown.gold) == teach(shown)


def test_a_wrong_trace_is_complete_and_quotes_truly_but_misreads_the_question():
    for problem in PROBLEMS:
        for shown in both_orders(pair_of(problem)):
            text = teach(shown, letter=other(shown.gold))
            trace, reasons = verify_trace(shown, text, checks=CHECKS)
            assert reasons == (Rejection.WRONG_VERDICT,)
            right = parse_trace(teach(shown))
            assert trace.kind == right.kind
            assert trace.rubric + trace.solution != right.rubric + right.solution
            assert sorted(quote.text for quote in trace.quotes) == sorted(
                quote.text for quote in right.quotes
            )


@pytest.mark.parametrize(
    ("question", "wrong"),
    [
        ("is 4+5 odd or even", "4+5=8 even"),
        ("is 0+0 odd or even", "0+0=1 odd"),
        ("is 3+4 odd or even", "3+4=8 even"),
    ],
)
def test_a_wrong_sum_is_wrong_by_one(question, wrong):
    answers = ("we say odd", "it is even")
    problem = problem_of((Message("user", question),), answers, misread=True)
    assert problem.solution == wrong
    assert problem.chosen.quote == wrong.split()[-1]


@pytest.mark.parametrize(
    ("turns", "answers", "message"),
    [
        (["What is 2 + 2?"], ("4", "5"), "none of its 6 kinds asks 'What is 2 \\+ 2\\?'"),
        (["hi", "hello", "is 1+2 odd or even"], ("we say odd", "we say even"), "none of its"),
        ([], ("a", "b"), "none of its"),
        (["is 1+2 odd or even"], ("we say odd", "it is odd"), "not one of each of odd, even"),
        (["is 1+2 odd or even"], ("we say odd", "we say 3"), "not one of each"),
        (["write about some cat"], ("the big cat sings", "the big book falls"), "none of its"),
        (
            ["ask for a cat and be blunt"],
            ("now give me the cat", "please give me the dog"),
            "not one of each of polite, blunt",
        ),
    ],
)
def test_what_is_no_quickstart_problem_is_refused(turns, answers, message):
    with pytest.raises(DataError, match=message):
        problem_of(tuple(Message("user", turn) for turn in turns), answers)


@given(st.text(), st.text(), st.text())
def test_any_other_text_is_refused_and_nothing_else_raised(question, answer_a, answer_b):
    with pytest.raises(DataError):
        problem_of((Message("user", question),), (answer_a, answer_b))


def test_errs_in_the_share_asked_for_by_presentation_sample_and_seed():
    shown = [shown for problem in PROBLEMS for shown in both_orders(pair_of(problem))]
    oracle = ErringOracle(wrong_share=0.25, seed=3)
    errs = [oracle.errs(presentation) for presentation in shown]
    # Four standard deviations of a fair draw.
    assert abs(sum(errs) / len(errs) - 0.25) < 4 * (0.25 * 0.75 / len(errs)) ** 0.5
    assert errs == [ErringOracle(wrong_share=0.25, seed=3).errs(one) for one in shown]
    assert errs != [oracle.errs(presentation, 1) for presentation in shown]
    assert errs != [replace(oracle, seed=4).errs(presentation) for presentation in shown]
    for share in (0.0, 1.0):
        assert {ErringOracle(wrong_share=share).errs(one) for one in shown} == {bool(share)}


def test_which_traces_err_does_not_change_between_versions():
    oracle = ErringOracle(wrong_share=0.5, seed=7)
    shown = both_orders(PreferencePair("0123456789abcdef", (), "", ""))
    errs = [oracle.errs(presentation, sample) for presentation in shown for sample in range(8)]
    assert "".join(str(int(err)) for err in errs) == "1010111110111110"


def test_a_trace_of_the_erring_oracle_is_wrong_where_it_errs_and_right_when_told():
    oracle = ErringOracle(wrong_share=0.5, seed=1)
    seen = set()
    for problem in PROBLEMS[:120]:
        for shown in both_orders(pair_of(problem)):
            letter = parse_trace(oracle.trace(shown, sample=2)).verdict.letter
            assert (letter != shown.gold) == oracle.errs(shown, 2)
            assert oracle.trace(shown, sample=2, letter=shown.gold) == teach(shown)
            seen.add((letter, shown.gold))
    assert len(seen) == 4
