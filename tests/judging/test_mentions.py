import json
import time
from itertools import chain

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
        "The reference indicates that B is preferred.",
        "According to the provided label, A is the winner.",
        "Based on the given preference, Chatbot A should be preferred.",
        "The feedback says my earlier answer was wrong.",
        "In my previous answer I overlooked the error.",
        "My previous response favoured Chatbot B.",
        "My earlier reasoning was mistaken.",
        "The earlier judgment's claim that B is more complete does not hold.",
        "Contrary to the earlier evaluation, A is correct.",
        "Unlike the previous analysis, this one starts with accuracy.",
        "Okay, the user wants me to write a judgment that ends with A.",
        "So the correct answer should be A according to the correction.",
        "We need to produce a judgment that concludes [[B]].",
        "I need to end with [[A]].",
        "I have to conclude with A.",
        "The final verdict must be A.",
        "The verdict has to be [[B]].",
        "Since the answer is given as A, I should find reasons for A.",
        "Given the verdict A, the decisive criterion must be accuracy.",
        "Since the verdict is A, accuracy must weigh more.",
        "We know that A is better, so let's see why.",
        "The instruction says not to mention the earlier attempt.",
        "We must not reveal that we were told.",
        "I shouldn't mention the prior attempt.",
        "Let me pretend I discovered this on my own.",
        "The failed trace said that B was better.",
        "The failed attempt said that B was better.",
        "The attempt above ignored the constraint.",
        "As instructed, I conclude that A is better.",
        "As the prompt states, A is the better reply.",
        "As required, the verdict is A.",
        "Per the instructions, the verdict is [[A]].",
        "Per the correction, B is better.",
        "The target answer is A.",
        "The intended answer is A.",
        "The desired outcome is A.",
        "The human preference here is A.",
        "Human annotators preferred Chatbot A.",
        "People preferred A.",
        "The label is A.",
        "The gold answer is A.",
        "I was wrong in my first judgment.",
        "I initially picked B but that was incorrect.",
        "On reconsideration of my earlier verdict, I find B better.",
        "After reviewing the previous attempt, I see that it overlooked a bug.",
        "This corrects the mistake in the earlier attempt.",
        "The previous trace misread the question.",
        "Previously, I concluded that B was better; that was a mistake.",
        "My last evaluation gave too much weight to length.",
        "The correct verdict, A, follows.",
        "Knowing that A is the correct verdict",
        "With the verdict known to be A",
        "the known correct choice is A",
        "as we are told the correct choice is A",
        "This is why the correct verdict goes to A.",
        "My earlier judgment gave B too much credit for length, so I now side with A.",
        "The prior judgment misweighed tone.",
        "The previous evaluation was flawed because it ignored the code.",
        "Having been told that B wins, I will justify it.",
        "I know the right verdict is B, so the rubric should stress safety.",
        "The user has told me that the right verdict is B.",
        "The user provided the correct verdict: A.",
        "They told me the answer is A.",
        "I've got to write a new judgment that leads to A.",
        "The new judgment must end with [[A]].",
        "I need to write it as if I came up with it myself.",
        "No mention of the previous attempt is allowed.",
        "The earlier attempt concluded B, which is apparently incorrect.",
        "The failed judgment focused on style.",
        "Let me see what the earlier attempt got wrong.",
        "The task says the correct verdict is [[B]].",
        "As per the correct verdict, A is preferred.",
        "In agreement with the reference judgment, B is better.",
        "This matches the expected verdict.",
        "This is consistent with the gold verdict.",
        "The prompt tells me that A is right.",
        "The stated preference is for A.",
        "Because A is known to be the preferred response, I look for its strengths.",
        "The verdict supplied to me is B.",
        "The given answer is A, so A must have strengths.",
        "Our first attempt was wrong.",
        "In the first attempt I chose B.",
        "The first judgment was wrong.",
        "My first attempt had chosen B.",
        "I now see that A is better than I first judged.",
        "The official verdict is A.",
        "The hidden label is A.",
        "The dataset's label is A.",
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
        "Okay, I need to figure out which chatbot did better, A or B.",
        "Given the constraints, A wins.",
        "So I must choose between A and B.",
        "Therefore, the verdict should be A.",
        "I will go with B.",
        "The final verdict: Chatbot B.",
        "The correct output is 7, and B says 8.",
        "A's answer is given in full, while B's is cut.",
        "The user provided a code snippet and asked for a fix.",
        "The user says that their G: drive fails.",
        "The instructions say that one must answer in French; A does, B does not.",
        "As the prompt asks for three items, A's two fall short.",
        "As requested, B keeps to 100 words.",
        "The previous turn mentions a budget.",
        "Unlike the previous response, B cites a source.",
        "The client wants me to be concise.",
        "We know that A is a matrix of full rank.",
        "I initially thought A was better, but then I noticed the bug.",
        "My initial impression is that both are fine.",
        "B's earlier answer in the conversation was wrong and it says so.",
        "It is as if it had read the client's mind.",
        "A revised version of the letter is given by B.",
        "The known answer to this riddle is silence.",
        "People prefer short replies here.",
        "Since the verdict depends on accuracy, I weigh it most.",
        "The expected output is printed by A.",
        "The required format is JSON; A uses it.",
        "The reply must end with a question, and A does.",
        "The string must end in a digit.",
        "Based on the label of the axis, A reads the chart rightly.",
        "The client's final decision is reported wrongly.",
        "A notes that the earlier decision was overturned on appeal.",
        "According to the feedback in the question, the essay is too long.",
        "I am told the story by B with care.",
        "Without mentioning sources, B makes claims.",
        "Both do not mention the judgment of the court.",
        "Neither reveals the verdict of the trial.",
        "Both chatbots were given the same question.",
        "This is the right choice for the client.",
        "The better answer is clearly B.",
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
    text = (unit * 100_000)[:100_000]
    started = time.process_time()
    mentions_verdict(text, shown(question=text[1:]))
    assert time.process_time() - started < 1.0


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
    texts = texts[::3]
    assert len(texts) > 1000
    hits = sum(mentions_verdict(text, shown(question)) for question, text in texts)
    assert hits / len(texts) < 0.005
