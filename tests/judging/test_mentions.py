import json
import os
import time
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judging.mentions import mentions_verdict
from judging.prompts import load_template
from judging.records import Message, PreferencePair, Presentation


def shown(question="Which city is larger?", chosen="Rome.", rejected="Pisa."):
    pair = PreferencePair("1", (Message("user", question),), chosen, rejected)
    return Presentation(pair, "chosen_first")


@pytest.mark.parametrize(
    "text",
    [
        "This agrees with the correct verdict given.",
        "As stated, the right answer is A.",
        "As given, the correct response is Chatbot B, so I look for its merits.",
        "The previous judgment was wrong to favour brevity.",
        "The previous judgement overlooked this.",
        "You told me that A is better.",
        "You've told me which one wins.",
        "This is in line with the reference verdict.",
        "The ground truth says B.",
        "It differs from the ground-truth label.",
        "My earlier attempt missed the error.",
        "The earlier attempt missed the error.",
        "An earlier attempt chose A.",
        "The **correct verdict** is B.",
        'The "correct verdict" is B.',
        "The correct\nverdict is B.",
        "the gold label is A",
        "Since I was told that A is better, I will argue for it.",
        "I have been told the correct verdict.",
        "I was given the correct answer beforehand.",
        "I'm given the verdict, so I need only explain it.",
        "I was shown a failed attempt.",
        "I've been shown my previous judgment.",
        "The verdict was given as B.",
        "The verdict provided is A.",
        "The verdict is known to be A.",
        "The stated verdict, A, holds.",
        "The given verdict is B.",
        "The known verdict favours B.",
        "In keeping with the expected verdict, B wins.",
        "The provided verdict is B.",
        "As you said, B is better.",
        "As you\u2019ve indicated, Chatbot A is better.",
        "You said the correct verdict is B.",
        "You indicated that Chatbot B is better.",
        "The user says the correct verdict is A, so I must find reasons.",
        "The user says that the better reply is A.",
        "The prompt says B is better.",
        "The instructions say that Chatbot A is better.",
        "I am supposed to conclude that B is better.",
        "I'm asked to justify A.",
        "I must not mention that the verdict was given.",
        "I should write this without mentioning the earlier attempt.",
        "I need to avoid revealing that I was told.",
        "I write it as if I had found it myself.",
        "I will write as though I did not know.",
        "The wrong verdict came from misreading the question.",
        "Unlike the failed judgment, I check the sum first.",
        "Correcting the prior analysis, which was wrong: the prior analysis was wrong about units.",
        "The earlier evaluation overlooked a mistake.",
        "Here is the corrected judgment.",
        "My revised verdict is B.",
        "In this second attempt I look closer.",
        "I previously judged A to be better.",
        "I wrongly preferred A.",
        "The pair was previously judged in favour of A.",
        "The correct answer is given as B.",
        "The better response is known to be Chatbot A.",
        "Annotators preferred B.",
        "The correction says B.",
        "By the answer key, B wins.",
        "The judgment shown above is flawed.",
        "The right choice has been stated to be A.",
        "<quote_A>Rome</quote_A> is right, as the reference verdict says.",
        "I think the reference verdict is B.</think><answer>[[B]]</answer>",
    ],
)
def test_betrays_what_it_was_told(text):
    assert mentions_verdict(text, shown())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The correct answer is 42, and A says so.",
        "The correct answer is A in this test of options, and Chatbot B picks it.",
        "The correct answer is given by the formula.",
        "The right answer is Rome. Chatbot A is better.",
        "Therefore the better response is B.",
        "Chatbot A's verdict on the film is harsh.",
        "The client asks for a verdict and A gives one.",
        "I am asked to choose A or B.",
        "I'm asked to pick [[A]] or [[B]].",
        "I was given two responses and a question.",
        "I am given the question of a client.",
        "The user says the answer is a fraction.",
        "The user is told a story.",
        "The client's previous attempts to log in failed.",
        "The user's earlier attempt raises a TypeError.",
        "Both build on the previous analysis in the conversation.",
        "My first thought was A, but B cites a source.",
        "At first I preferred A; on a closer look B is right.",
        "Wait, let me check the first attempt at the sum again.",
        "B corrects the earlier statement.",
        "The previous message asks for more.",
        "As stated in the rubric, accuracy weighs most.",
        "As noted above, Chatbot A is more precise.",
        "Given that Chatbot B is correct and A is not, B is better.",
        "This is the gold standard of advice.",
        "The label on the bottle says organic.",
        "It would be better without mentioning the price.",
        "The reply does not mention the earlier flight.",
        "Chatbot A does not mention the given constraints.",
        "Chatbot B reads as if it had been found on the web.",
        "A is told to be polite and is.",
        "<quote_A>As you told me, the correct verdict is A</quote_A> is A's claim.",
        "<summary_B>B knows the ground truth and the previous judgment</summary_B>",
        "<think>It says <quote_B>you told me so</quote_B>.</think>",
    ],
)
def test_what_a_judge_may_say(text):
    assert not mentions_verdict(text, shown())


@pytest.mark.parametrize("place", ["question", "chosen", "rejected"])
@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("Is the Ground Truth noisy here?", "B explains how the ground truth is labelled."),
        ('I wrote "as you told me" to them.', "The client writes, as you told me, to them."),
        ("The *correct verdict* was guilty.", "For the jury the correct verdict was guilty."),
    ],
)
def test_words_of_the_conversation_or_an_answer_do_not_count(place, said, text):
    assert mentions_verdict(text, shown())
    assert not mentions_verdict(text, shown(**{place: said}))
    assert mentions_verdict(text + " So says the reference verdict.", shown(**{place: said}))


@pytest.mark.parametrize("failed_trace", ["", "A is larger."])
def test_a_teacher_that_repeats_what_it_was_told_betrays_it(failed_trace):
    template = load_template("corrected", parent="reasoning")
    prompt = template.render(shown(), verdict="A", failed_trace=failed_trace)[-1].content
    correction = prompt.partition("[The Start of the Correction]")[2]
    assert mentions_verdict(correction, shown())


def test_an_open_quote_hides_nothing():
    assert mentions_verdict("<quote_A>Rome. The reference verdict is A.", shown())


@given(st.text())
def test_never_raises(text):
    assert mentions_verdict(text, shown()) in (True, False)


@pytest.mark.parametrize(
    "unit",
    [
        *("the ", "I was ", "you ", "the verdict was already ", "the earlier ", "not mention the "),
        *("the user says the ", "as stated ", " ", "<quote_A>", "A or ", "being having "),
        *("without mentioning the any being my i ", "ground truth ", "the correct verdict "),
    ],
)
def test_time_is_linear(unit):
    text = (unit * 200_000)[:200_000]
    started = time.process_time()
    mentions_verdict(text, shown(question=text[1:]))
    assert time.process_time() - started < 1.5


@pytest.fixture
def shared_data() -> Path:
    root = os.environ.get("GAVEL_SHARED_DATA")
    if not root:
        pytest.skip("GAVEL_SHARED_DATA is not set: no real traces and answers to read")
    return Path(root)


def test_no_logged_judgment_is_taken_for_a_corrected_one(shared_data):
    gold = shared_data / "gold"
    judgments = json.loads((gold / "instruct_trace_example.json").read_text())
    for log in sorted(gold.glob("*/RMB/*/log_result/*logs.json")):
        logged = json.loads(log.read_text())
        judgments += chain(*logged.values()) if isinstance(logged, dict) else logged
    assert len(judgments) >= 13
    assert not any(mentions_verdict(judgment["answers"], shown()) for judgment in judgments)


def test_real_prose_of_models_is_hardly_ever_taken_for_a_corrected_judgment(shared_data):
    """Logged judgments are few: answers to real questions stand for them, as if a judge's text."""
    texts = [
        (item["prompt"], text)
        for file in sorted((shared_data / "rm-bench").glob("*.json"))
        for item in json.loads(file.read_text())
        for text in item["chosen"] + item["rejected"]
    ]
    assert len(texts) > 3000
    hits = sum(mentions_verdict(text, shown(question)) for question, text in texts)
    assert hits / len(texts) < 0.005
