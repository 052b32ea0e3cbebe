"""What counts as overlap, against a slow and plain count of the same."""

from collections import Counter
from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judging.overlap import (
    ANSWER_SHARE,
    COMMON_CONVERSATIONS,
    EXAMPLES_SHOWN,
    WORDS,
    evaluation_set,
    find_overlaps,
    words_of,
)
from judging.readers import read_pairs
from judging.records import Message, PreferencePair, pair_uid
from judging.splits import split_pairs


def pair(question: str, chosen: str = "yes", rejected: str = "no") -> PreferencePair:
    conversation = (Message("user", question),)
    return PreferencePair(pair_uid(conversation, chosen, rejected), conversation, chosen, rejected)


def words(name: str, count: int = WORDS) -> str:
    """Text that shares no word with that of another name."""
    return " ".join(f"{name}{number}" for number in range(count))


def overlapping(training, evaluation) -> tuple[int, ...]:
    within = evaluation_set("set", [(each.uid, each) for each in evaluation])
    (overlap,) = find_overlaps(training, [within])
    return overlap.pairs


# ---- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't  STOP,\nat_all - 3.5!", ["dont", "stop", "atall", "35"]),
        ("\u201cDon\u2019t\u201d stop — at all…", ["dont", "stop", "at", "all"]),
        ("\uff26ull\u3000\uff37idth", ["full", "width"]),
        ("今天、天气 good", ["今", "天", "天", "气", "good"]),
        ("これはテスト", list("これはテスト")),
        ("한국어 문장", ["한국어", "문장"]),
        ("?!", []),
    ],
)
def test_words_are_without_case_and_punctuation(text, expected):
    assert words_of(text) == expected


@given(st.text())
def test_words_hold_letters_and_digits_only(text):
    assert all(word.isalnum() for word in words_of(text))


@given(st.text(st.characters(codec="ascii")))
def test_case_spaces_and_text_beyond_ascii_change_no_word(text):
    spaced = " 。\n".join(text.upper().split())
    assert words_of(spaced) == words_of(text)


# ---- the rule ------------------------------------------------------------------------------------


def runs(text: str) -> list[tuple[str, ...]]:
    found = words_of(text)
    return [tuple(found[i : i + WORDS]) for i in range(len(found) - WORDS + 1)]


def plain_keys(each: PreferencePair) -> list[list[tuple[str, ...]]]:
    """Of the conversation and both answers."""
    question = each.conversation[0].content
    whole = tuple(words_of(question))
    conversation = runs(question) or [whole][: len(whole)]
    return [conversation, runs(each.chosen), runs(each.rejected)]


def plain_rare(pairs) -> set[tuple[str, ...]]:
    by_conversation: dict = {}
    for each in pairs:
        by_conversation.setdefault(each.conversation, set()).update(*plain_keys(each))
    counts = Counter(chain.from_iterable(by_conversation.values()))
    return {key for key, count in counts.items() if count <= COMMON_CONVERSATIONS}


def plain_overlapping(training, evaluation) -> tuple[int, ...]:
    rare = plain_rare(training) & plain_rare(evaluation)

    def does(each: PreferencePair) -> bool:
        conversation, *answers = ([key in rare for key in keys] for keys in plain_keys(each))
        return any(conversation) or any(
            sum(shared) >= ANSWER_SHARE * len(shared) for shared in answers if shared
        )

    return tuple(number for number, each in enumerate(training) if does(each))


# Few blocks of a few words, so that texts share runs, wholes and parts, and some are common.
BLOCKS = [words(name, count) for name, count in (("a", 5), ("b", 8), ("c", 13), ("d", 20))]
TEXTS = st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=4).map(" ".join)
PAIRS = st.lists(st.builds(pair, TEXTS, TEXTS, TEXTS), min_size=1, max_size=40)


@given(PAIRS, PAIRS)
def test_overlap_is_what_a_plain_count_finds(training, evaluation):
    assert overlapping(training, evaluation) == plain_overlapping(training, evaluation)


@given(st.permutations(range(30)))
def test_the_order_of_pairs_tells_nothing(order):
    training = [pair(words(f"q{i}"), words("shared" if i < 15 else f"r{i}")) for i in range(30)]
    evaluation = [pair("what?", words("shared")), pair(words("q3")), pair(words("q20"))]
    found = overlapping([training[i] for i in order], evaluation)
    assert sorted(order[number] for number in found) == [3, 20]


def test_thirteen_words_of_a_question_overlap_and_twelve_do_not():
    evaluation = [pair(f"before {words('x')} after")]
    assert overlapping([pair(f"other {words('x')}")], evaluation) == (0,)
    assert overlapping([pair(f"other {words('x', WORDS - 1)} words")], evaluation) == ()


def test_a_short_question_overlaps_as_a_whole_only():
    evaluation = [pair("How to bake bread?")]
    training = [pair("how to bake bread"), pair("how to bake bread now"), pair("bake bread")]
    assert overlapping(training, evaluation) == (0,)


def test_a_sentence_of_an_answer_is_no_overlap_and_most_of_it_is():
    evaluation = [pair("a?", words("x", 100))]
    sentence = f"{words('y', 80)} {words('x', 20)}"
    most = f"{words('x', 100)} {words('y', 20)}"
    assert overlapping([pair("b?", sentence), pair("c?", "no", most)], evaluation) == (1,)


def test_short_answers_do_not_overlap():
    assert overlapping([pair("b?", "Yes.", "No.")], [pair("a?", "Yes.", "No.")]) == ()


@pytest.mark.parametrize("side", ["training", "evaluation"])
def test_what_many_conversations_say_is_ignored(side):
    def say(count: int) -> list[PreferencePair]:
        return [pair(f"{words('phrase')} {words(f'own{i}')}") for i in range(count)]

    one = [pair(words("phrase"))]
    for count, found in ((COMMON_CONVERSATIONS, True), (COMMON_CONVERSATIONS + 1, False)):
        sides = (say(count), one) if side == "training" else (one, say(count))
        assert bool(overlapping(*sides)) is found


def test_many_pairs_of_one_conversation_are_not_many_conversations():
    training = [pair(words("q"), f"answer {i}") for i in range(30)]
    assert overlapping(training, [pair(words("q"))]) == tuple(range(30))


def test_system_and_assistant_turns_are_not_compared():
    said = words("x")
    first = pair("first")
    turns = (Message("system", said), *first.conversation, Message("assistant", said))
    asked = replace(first, conversation=(*turns, Message("user", "and then")))
    assert overlapping([pair(said)], [asked]) == ()
    assert overlapping([pair("first and then")], [asked]) == (0,)


def test_examples_show_the_text_that_overlaps():
    stock, copied = words("stock", 20), words("copied", 40)
    evaluation = [("one", pair("a?", stock)), ("two", pair("b?", copied))]
    training = [pair(f"c{i}?", f"{stock} {words('own', 90)}", copied) for i in range(5)]
    (overlap,) = find_overlaps(training, [evaluation_set("set", evaluation)])
    assert overlap.pairs == (0, 1, 2, 3, 4)
    assert len(overlap.examples) == EXAMPLES_SHOWN
    first = overlap.examples[0]
    assert (first.pair_uid, first.item_uid) == (training[0].uid, "two")
    assert first.words == words("copied")


def test_sets_are_searched_each_by_itself():
    sets = [evaluation_set(name, [("item", pair(words(name)))]) for name in ("a", "b")]
    found = find_overlaps([pair(words("b")), pair(words("c"))], [*sets, evaluation_set("none", [])])
    assert [(overlap.name, overlap.pairs) for overlap in found] == [
        ("a", ()),
        ("b", (0,)),
        ("none", ()),
    ]


def test_real_pairs_repeat_themselves_and_hardly_each_other(shared_data):
    pairs = list(read_pairs(shared_data / "rmb" / "Pairwise_set"))
    assert overlapping(pairs, pairs) == tuple(range(len(pairs)))
    halves = split_pairs(pairs, distill_fraction=0, heldout_fraction=0.5, seed=0)
    found = overlapping(halves.reinforce, halves.heldout)
    assert 0 < len(found) < 0.03 * len(halves.reinforce)  # one prompt put to several texts
