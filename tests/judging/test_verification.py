import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from judging.errors import ConfigurationError
from judging.presentation import both_orders
from judging.records import Message, PreferencePair
from judging.traces import parse_trace
from judging.verification import Rejection, TraceChecks, verify_trace

PAIR = PreferencePair("1", (Message("user", "What is 2 + 2?"),), "It is 4.", "It is 5.")
SHOWN, SWAPPED = both_orders(PAIR)
CHECKS = TraceChecks()
OFF = TraceChecks(grammar=False, weights=False, quotes=False, mentions=False)

CHAT = """<type>Chat</type>
<rubric>
Accuracy (60%)
Brevity (40%)
<justify>A wrong sum helps nobody.</justify>
</rubric>
<eval><quote_A>it is 4</quote_A> is right, <quote_B>It is 5.</quote_B> is not.</eval>
<answer>[[A]]</answer>"""
REASONING = """<type>Reasoning</type>
<solution>2 + 2 = 4</solution>
<eval>A agrees: <quote_A>It is 4.</quote_A></eval>
<answer>[[A]]</answer>"""
THOUGHT = """2 + 2 = 4, as A says. <answer>[[B]]</answer>? No: B is off by one.
A repeats the sum and B does not, so it is not a slip of the pen.
</think>

<answer>[[A]]</answer>"""


def rejections(text, shown=SHOWN, checks=CHECKS, **options):
    return verify_trace(shown, text, checks=checks, **options)[1]


@pytest.mark.parametrize("text", [CHAT, REASONING, THOUGHT, f"Hm.</think>{CHAT}"])
@pytest.mark.parametrize("options", [{}, {"told_verdict": True}, {"strict_tail": True}])
def test_a_right_and_complete_trace_may_be_imitated(text, options):
    trace, reasons = verify_trace(SHOWN, text, checks=CHECKS, **options)
    assert reasons == ()
    assert trace == parse_trace(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (CHAT.replace("[[A]]", "[[B]]"), Rejection.WRONG_VERDICT),
        (CHAT.replace("[[A]]", "[[A]] [[B]]"), Rejection.NO_VERDICT),
        (CHAT.replace("</eval>", ""), Rejection.GRAMMAR),
        (CHAT.replace("</rubric>", ""), Rejection.GRAMMAR),
        (REASONING + "\n" + REASONING, Rejection.GRAMMAR),
        (REASONING + "\n<type>Chat</type>", Rejection.GRAMMAR),
        (REASONING + "\n<solution>Once more:", Rejection.GRAMMAR),
        (REASONING + "\nI hope this helps.", Rejection.GRAMMAR),
        (CHAT + "<type>Chat</type>", Rejection.GRAMMAR),
        (CHAT.replace("<type>Chat</type>", "<type>Chat</type>" * 2), Rejection.GRAMMAR),
        ("<answer>[[A]]</answer>", Rejection.GRAMMAR),
        (THOUGHT + "<answer>[[A]]</answer>", Rejection.GRAMMAR),
        (CHAT.replace("40%", "50%"), Rejection.WEIGHTS),
        (CHAT.replace("It is 5.", "It is 6."), Rejection.QUOTES),
        (CHAT.replace("quote_A", "quote_B"), Rejection.QUOTES),
    ],
)
def test_each_fault_is_named_alone(text, reason):
    assert rejections(text) == (reason,)


def test_a_text_without_an_answer_lacks_verdict_and_grammar():
    assert rejections("Both are fine.") == (Rejection.NO_VERDICT, Rejection.GRAMMAR)


def test_a_text_that_was_cut_off_is_refused_even_after_its_verdict():
    assert rejections(CHAT, truncated=True) == (Rejection.TRUNCATED,)
    assert rejections(CHAT[:40], truncated=True) == (
        Rejection.TRUNCATED,
        Rejection.GRAMMAR,
        Rejection.WEIGHTS,
    )


def test_all_reasons_are_named():
    text = (
        "As the reference verdict says: <rubric>Tone (10%)</rubric>"
        "<quote_A>five</quote_A><answer>[[B]]</answer>"
    )
    checks = TraceChecks(min_chars=1000)
    assert set(rejections(text, checks=checks, truncated=True, told_verdict=True)) == set(
        Rejection
    ) - {Rejection.NO_VERDICT, Rejection.TOO_LONG}


def test_the_verdict_is_that_of_the_order_shown():
    swapped = CHAT.replace("quote_A", "quote_C").replace("quote_B", "quote_A")
    swapped = swapped.replace("quote_C", "quote_B").replace("[[A]]", "[[B]]")
    assert rejections(swapped, SWAPPED) == ()
    assert rejections(CHAT, SWAPPED) == (Rejection.WRONG_VERDICT, Rejection.QUOTES)


def test_only_a_teacher_that_was_told_can_betray_it():
    text = CHAT.replace("is right", "is right, as the reference verdict says")
    assert rejections(text) == ()
    assert rejections(text, told_verdict=True) == (Rejection.MENTIONS_VERDICT,)
    assert rejections(text, told_verdict=True, checks=TraceChecks(mentions=False)) == ()


def test_checks_can_be_turned_off_but_the_verdict_counts():
    loose = "<rubric>x</rubric><quote_A>five</quote_A> By the gold label: <answer>[[A]]</answer>"
    assert rejections(loose, checks=OFF, told_verdict=True) == ()
    assert rejections(loose.replace("[[A]]", "[[B]]"), checks=OFF) == (Rejection.WRONG_VERDICT,)
    assert rejections("", checks=OFF) == (Rejection.NO_VERDICT,)


def test_strict_tail_wants_the_verdict_at_the_very_end():
    late = CHAT + " " * 90
    assert rejections(late) == ()
    assert rejections(late, strict_tail=True) == (Rejection.NO_VERDICT,)


def test_length_limits_are_inclusive():
    size = len(CHAT)
    assert rejections(CHAT, checks=TraceChecks(min_chars=size, max_chars=size)) == ()
    assert rejections(CHAT, checks=TraceChecks(min_chars=size + 1)) == (Rejection.TOO_SHORT,)
    assert rejections(CHAT, checks=TraceChecks(max_chars=size - 1)) == (Rejection.TOO_LONG,)


def test_settings_are_checked():
    settings = TypeAdapter(TraceChecks)
    assert settings.validate_python({"max_chars": 9}) == TraceChecks(max_chars=9)
    for wrong in ({"min_chars": -1}, {"max_chars": 0}, {"grammar": "perhaps"}):
        with pytest.raises(ValidationError):
            settings.validate_python(wrong)
    with pytest.raises(ConfigurationError, match=r"max_chars \(5\) is below min_chars \(6\)"):
        TraceChecks(min_chars=6, max_chars=5)


PIECES = [CHAT, REASONING, THOUGHT, "<rubric>", "</rubric>", "<eval>", "</eval>", "60%", "[[A]]"]
soup = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@given(st.one_of(st.text(), soup), st.booleans(), st.booleans(), st.booleans())
def test_never_raises_and_accepts_only_what_ends_in_the_gold_verdict(text, truncated, told, tail):
    trace, reasons = verify_trace(
        SHOWN, text, checks=CHECKS, truncated=truncated, told_verdict=told, strict_tail=tail
    )
    if not reasons:
        assert trace.verdict.letter == SHOWN.gold
        assert trace.outline.count("answer") == 1
        assert not truncated


@pytest.mark.parametrize(
    "unit",
    [
        *("1", "1.", "1 ", "9%", "<quote_A>it is 4</quote_A>", "<quote_A>...</quote_A>", "<eval>"),
        *("the ", "<rubric>1</rubric>", "<justify></justify>", "it is ...", CHAT),
    ],
)
def test_time_is_linear_on_adversarial_text(unit):
    text = f"<rubric>{(unit * 100_000)[:100_000]}</rubric><answer>[[A]]</answer>"
    started = time.process_time()
    verify_trace(SHOWN, text, checks=CHECKS, told_verdict=True)
    assert time.process_time() - started < 1.5
