import json
import os
import time
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judging.records import Quote, Reason, Trace, Verdict
from judging.traces import parse_trace

CHAT = """<type>Chat</type>

<rubric>
1. Warmth (60%)
2. Brevity (40%)
<justify>The client is sad.</justify>
</rubric>

<eval>
<quote_A>I am sorry</quote_A> is warm, <summary_B>B lectures</summary_B>.
</eval>

<answer>[[A]]</answer>"""

REASONING = """<type>Reasoning</type>
<solution>
2 + 2 = 4
</solution>
<eval><quote_B>it is 4</quote_B> is right; <summary_A>A says 5</summary_A>.</eval>
<answer>[[B]]</answer>"""

THOUGHT = "A looks fine, but B cites a source.\n</think>\n\n<answer>[[B]]</answer>"

TAGS = [
    f"<{slash}{name}>"
    for slash in ("", "/")
    for name in ("think", "type", "rubric", "justify", "solution", "eval", "answer")
] + ["<quote_A>", "</quote_A>", "<summary_B>", "</summary_B>", "[[A]]", "[[B]]", " word ", "\n"]

letters = st.sampled_from(["A", "B"])
# Noise that holds no part of the grammar.
noise = st.text(alphabet=st.characters(exclude_characters="<>[]"), max_size=60)
tag_soup = st.lists(st.sampled_from(TAGS), max_size=40).map("".join)


def letter_of(text: str, **options: bool) -> str | None:
    return parse_trace(text, **options).verdict.letter


def reason_of(text: str, **options: bool) -> Reason | None:
    return parse_trace(text, **options).verdict.reason


def test_chat_trace_has_all_its_parts():
    assert parse_trace(CHAT) == Trace(
        verdict=Verdict("A"),
        kind="chat",
        rubric="1. Warmth (60%)\n2. Brevity (40%)",
        justify="The client is sad.",
        evaluation="<quote_A>I am sorry</quote_A> is warm, <summary_B>B lectures</summary_B>.",
        quotes=(Quote("A", "I am sorry"),),
        summaries=(Quote("B", "B lectures"),),
        outline=("type", "rubric", "eval", "answer"),
    )


def test_reasoning_trace_has_all_its_parts():
    trace = parse_trace(REASONING)
    assert trace.verdict == Verdict("B")
    assert trace.kind == "reasoning"
    assert trace.solution == "2 + 2 = 4"
    assert trace.rubric == trace.justify == trace.thought == ""
    assert trace.quotes == (Quote("B", "it is 4"),)
    assert trace.summaries == (Quote("A", "A says 5"),)


@pytest.mark.parametrize("opening", ["", "<think>\n", " <THINK> "])
def test_thought_is_what_precedes_the_end_of_thinking(opening):
    trace = parse_trace(opening + THOUGHT)
    assert trace.verdict == Verdict("B")
    assert trace.kind == "thought"
    assert trace.thought == "A looks fine, but B cites a source."


def test_kind_is_inferred_where_the_type_tag_is_missing():
    assert parse_trace(CHAT.replace("<type>Chat</type>", "")).kind == "chat"
    assert parse_trace(REASONING.replace("<type>Reasoning</type>", "")).kind == "reasoning"
    assert parse_trace("<answer>[[A]]</answer>").kind == ""


@pytest.mark.parametrize(
    "answer",
    [
        "<answer>[[A]]</answer>",
        "< answer > [[A]] </ answer >",
        "<answer>\n[ [ A ] ]\n</answer>",
        "<ANSWER>[[A]]</Answer>",
        "<answer>[[a]]</answer>",
        "<answer>[[A]]</answer></answer>",
        "<answer><answer>[[A]]</answer>",
        "<answer>[[A]]",
        "<answer>Chatbot A is better: [[A]]</answer>",
        "<answer>[[A]]</answer> I hope this helps.",
        "<answer>[[A]]</answer> <answer>[[A]]</answer>",
        "[[A]]",
        "**[[A]]**.",
    ],
)
def test_tolerates_what_is_clear(answer):
    assert letter_of("Some reasoning.\n" + answer) == "A"


@pytest.mark.parametrize(
    "text",
    [
        "<eval>B ends in <answer>[[B]]</answer>, which is odd.</eval><answer>[[A]]</answer>",
        "<rubric>[[B]] if B is kind</rubric><answer>[[A]]</answer>",
        "I first thought <answer>[[B]]</answer>, no.</think><answer>[[A]]</answer>",
        "<think>[[B]]? [[A]]? <answer>[[B]]</answer></think></think><answer>[[A]]</answer>",
        "One may say [[B]], but <answer>[[A]]</answer>",
        "<quote_B>Say <answer>[[B]]</answer>!</quote_B> No. <answer>[[A]]</answer>",
        "<eval>never closed <answer>[[A]]</answer>",
        "<eval>closed late <answer>[[A]]</answer></eval>",
        "<think>closed late <answer>[[A]]</answer></think>",
        "thought</think><answer>[[A]]</answer></think> and more",
        "<eval>[[B]] is what B says of itself</eval> [[A]]",
    ],
)
def test_an_opposite_or_misplaced_marker_does_not_hide_the_verdict(text):
    assert letter_of(text) == "A"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Reason.NONE),
        ("Both are fine.", Reason.NONE),
        ("<answer></answer>", Reason.NONE),
        ("<answer>[[A/B]]</answer>", Reason.NONE),
        ("<answer>[[C]]</answer>", Reason.NONE),
        ("<answer>A</answer>", Reason.NONE),
        ("[[A]] is what I would say if I had to.", Reason.NONE),
        ("<quote_A>Say <answer>[[A]]</answer></quote_A>", Reason.NONE),
        ("<eval>It says <answer>[[A]]</answer> but why?</eval> Hard to tell.", Reason.NONE),
        ("<answer>[[A]]</answer><answer>[[B]]</answer>", Reason.CONFLICTING),
        ("<answer>[[A]] or [[B]]</answer>", Reason.CONFLICTING),
        ("<answer>[[A]] <answer>[[B]]</answer>", Reason.CONFLICTING),
        ("It is [[B]] or [[A]]", Reason.CONFLICTING),
    ],
)
def test_never_guesses(text, reason):
    assert parse_trace(text).verdict == Verdict(None, reason)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<eval>so far",
        "so <answer>",
        "it is [[A]]",
        "<think>maybe <answer>[[A]]</answer>, or",
        "maybe <answer>[[A]]</answer></think> Now",
        "<eval>It says <answer>[[A]]</answer> and",
        "<eval><quote_A>Say <answer>[[A]]</answer>",
    ],
)
def test_a_text_cut_off_before_its_answer_is_truncated(text):
    assert parse_trace(text, truncated=True).verdict == Verdict(None, Reason.TRUNCATED)


def test_a_text_cut_off_after_its_answer_has_a_verdict():
    assert letter_of(CHAT + "\n\nAnd one more th", truncated=True) == "A"
    assert letter_of(THOUGHT + " <think>and", truncated=True) == "B"


def test_strict_tail_is_the_rule_of_rm_r1():
    assert letter_of(CHAT, strict_tail=True) == "A"
    assert reason_of(CHAT + "x" * 60, strict_tail=True) is Reason.NONE
    assert reason_of("<answer>[[ A ]]</answer>", strict_tail=True) is Reason.NONE
    both = "<answer>[[A]]</answer><answer>[[B]]</answer>"
    assert reason_of(both, strict_tail=True) is Reason.CONFLICTING
    far = "<answer>[[A]]</answer>" + "x" * 80 + "<answer>[[B]]</answer>"
    assert letter_of(far, strict_tail=True) == "B"
    assert reason_of(far) is Reason.CONFLICTING
    assert reason_of("x", strict_tail=True, truncated=True) is Reason.TRUNCATED
    assert parse_trace(CHAT, strict_tail=True).rubric == parse_trace(CHAT).rubric


def test_broken_sections_do_not_swallow_the_next():
    trace = parse_trace("<rubric>be kind <eval>A is</eval></eval><answer>[[A]]</answer>")
    assert (trace.rubric, trace.evaluation, trace.verdict.letter) == ("be kind", "A is", "A")
    trace = parse_trace("<eval>A is kind <answer>[[A]]</answer>")
    assert trace.evaluation == "A is kind"
    trace = parse_trace("<rubric>x<justify>y</justify></justify></rubric></rubric>")
    assert (trace.justify, trace.quotes) == ("y", ())


@given(st.one_of(st.text(), tag_soup), st.booleans(), st.booleans())
def test_never_raises_and_reason_is_set_exactly_without_letter(text, strict_tail, truncated):
    trace = parse_trace(text, strict_tail=strict_tail, truncated=truncated)
    assert (trace.verdict.letter is None) == (trace.verdict.reason is not None)
    assert (trace.verdict.reason is Reason.TRUNCATED) <= truncated
    assert trace == parse_trace(text, strict_tail=strict_tail, truncated=truncated)


@given(noise, noise, letters, st.booleans())
def test_noise_around_an_answer_keeps_the_verdict(before, after, letter, truncated):
    text = f"{before}<answer>[[{letter}]]</answer>{after}"
    assert parse_trace(text, truncated=truncated).verdict == Verdict(letter)


@given(noise, noise)
def test_noise_around_whole_traces_keeps_verdict_and_parts(before, after):
    for text in (CHAT, REASONING):
        assert parse_trace(before + text + after) == parse_trace(text)
    assert letter_of(before + THOUGHT + after) == "B"


@given(tag_soup, letters)
def test_whatever_was_thought_the_answer_after_it_counts(thought, letter):
    text = f"<think>{thought}</think>\n\n<answer>[[{letter}]]</answer>"
    assert parse_trace(text).verdict == Verdict(letter)


@given(noise, noise, st.permutations(["A", "B"]), st.booleans())
def test_both_letters_as_answer_are_no_verdict(before, between, order, truncated):
    first, second = order
    text = f"{before}<answer>[[{first}]]</answer>{between}<answer>[[{second}]]</answer>"
    assert parse_trace(text, truncated=truncated).verdict == Verdict(None, Reason.CONFLICTING)


@given(tag_soup)
def test_a_verdict_names_a_letter_that_the_text_names(text):
    letter = letter_of(text)
    assert letter is None or f"[[{letter}]]" in text


@pytest.mark.parametrize(
    "unit",
    [
        *(*TAGS, "<", "[", "< ", "[ ", "<answer> ", "<answer>[[A]]</answer>", "<eval>x</eval>"),
        *("<rubric></rubric><justify></justify>", "</think><answer>[[A]]</answer>"),
        *("<eval></eval><answer>[[A]]</answer>", "<quote_A></quote_B>"),
    ],
)
def test_time_is_linear_on_adversarial_text(unit):
    text = "<answer><" + (unit * 50_000)[:50_000] + "<answer>[[A]]</answer>"
    for truncated in (False, True):
        started = time.process_time()
        parse_trace(text, truncated=truncated)
        assert time.process_time() - started < 0.9


@pytest.fixture
def gold() -> Path:
    root = os.environ.get("GAVEL_SHARED_DATA")
    if not root:
        pytest.skip("GAVEL_SHARED_DATA is not set: no logged traces to parse")
    return Path(root) / "gold"


def logged_judgments(gold: Path) -> list[dict]:
    judgments = json.loads((gold / "instruct_trace_example.json").read_text())
    for log in sorted(gold.glob("*/RMB/*/log_result/*logs.json")):
        logged = json.loads(log.read_text())
        judgments += chain(*logged.values()) if isinstance(logged, dict) else logged
    return judgments


def test_logged_verdicts_agree_with_the_published_results(gold):
    judgments = logged_judgments(gold)
    assert len(judgments) >= 13
    for judgment in judgments:
        is_chosen_second = judgment["Is_Chosen_Answer_Shuffled_toPositionB"]
        for strict_tail in (False, True):
            letter = letter_of(judgment["answers"], strict_tail=strict_tail)
            assert letter in ("A", "B")
            assert (letter == ("B" if is_chosen_second else "A")) == bool(judgment["results"])


def test_logged_traces_have_their_parts(gold):
    for judgment in logged_judgments(gold):
        trace = parse_trace(judgment["answers"])
        if trace.kind == "chat":
            assert all((trace.rubric, trace.justify, trace.evaluation))
            assert {quote.letter for quote in trace.quotes + trace.summaries} == {"A", "B"}
            assert "<" not in trace.rubric
        else:
            assert trace.kind == "thought"
            assert len(trace.thought) > 1000
            assert "think>" not in trace.thought
        bare = judgment["answers"].replace("<answer>", "").replace("</answer>", "")
        assert parse_trace(bare).verdict == trace.verdict
