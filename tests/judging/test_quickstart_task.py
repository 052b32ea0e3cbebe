import re
from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from judging.errors import ConfigurationError
from judging.presentation import both_orders
from judging.quickstart import (
    FOODS,
    KINDS,
    PARITIES,
    SOUNDS,
    TONES,
    TOPICS,
    UNTAUGHT,
    QuickstartData,
    QuickstartTask,
    generate,
    oracle_trace,
)
from judging.records import PreferencePair, pair_uid
from judging.traces import parse_trace

TASK = QuickstartTask(seed=7, distill_pairs=600, reinforce_pairs=3600, heldout_pairs=300)


@pytest.fixture(scope="module")
def data() -> QuickstartData:
    return generate(TASK)


@pytest.fixture(scope="module")
def pairs(data: QuickstartData) -> list[PreferencePair]:
    return [*data.distill, *data.reinforce, *data.heldout]


def holds_one_of(words: Iterable[str], answer: str) -> bool:
    return not set(words).isdisjoint(answer.split())


def is_better_by(question: str, answer: str) -> bool:
    """Reads the question anew, without the generator: does this answer do what it asks?"""
    rules: tuple[tuple[str, Callable[[re.Match[str]], bool]], ...] = (
        (r"write about some (\w+)", lambda rule: holds_one_of(TOPICS[rule[1]], answer)),
        (r"suggest a meal without (\w+)", lambda rule: not holds_one_of(FOODS[rule[1]], answer)),
        (r"ask for a \w+ and be (\w+)", lambda rule: holds_one_of(TONES[rule[1]], answer)),
        (
            r"is (\d)\+(\d) odd or even",
            lambda rule: ("odd" if (int(rule[1]) + int(rule[2])) % 2 else "even") in answer.split(),
        ),
        (r"name a number that is (\w+)", lambda rule: holds_one_of(PARITIES[rule[1]], answer)),
        (r"name a letter that is (\w+)", lambda rule: holds_one_of(SOUNDS[rule[1]], answer)),
    )
    for pattern, decide in rules:
        if rule := re.fullmatch(pattern, question):
            return decide(rule)
    raise AssertionError(f"no rule reads {question!r}")


def test_the_same_settings_give_the_same_data_and_another_seed_gives_other_data(data):
    assert generate(TASK) == data
    other = generate(QuickstartTask(seed=8, distill_pairs=6, reinforce_pairs=6, heldout_pairs=6))
    assert {pair.uid for pair in other.heldout} != {pair.uid for pair in data.heldout[:6]}


def test_parts_have_the_sizes_asked_for_and_every_kind_in_equal_shares(data):
    assert [len(data.distill), len(data.reinforce), len(data.heldout)] == [600, 3600, 300]
    for part in (data.distill, data.reinforce, data.heldout):
        shares = Counter(pair.category for pair in part)
        assert len(shares) == len(KINDS)
        assert set(shares.values()) == {len(part) // len(KINDS)}


def test_no_problem_stands_twice_in_whatever_part_or_direction(pairs):
    contents = {(pair.conversation, frozenset((pair.chosen, pair.rejected))) for pair in pairs}
    assert len(contents) == len(pairs) == len({pair.uid for pair in pairs})


def test_uid_is_the_content_hash(pairs):
    for pair in pairs[:50]:
        assert pair.uid == pair_uid(pair.conversation, pair.chosen, pair.rejected)


def test_the_question_tells_which_answer_is_better(pairs):
    for pair in pairs:
        question = pair.conversation[-1].content
        assert is_better_by(question, pair.chosen), pair
        assert not is_better_by(question, pair.rejected), pair


def test_only_distillation_has_traces_and_they_end_in_the_gold_verdict(data):
    for pair in data.distill:
        by_order = {presentation.order: presentation for presentation in both_orders(pair)}
        trace = parse_trace(pair.trace or "", strict_tail=True)
        assert trace.verdict.letter == by_order[pair.trace_order].gold
    assert all(pair.trace is None for pair in (*data.reinforce, *data.heldout))


def test_traces_have_the_parts_of_their_type_and_quote_what_the_answers_say(data):
    for pair in data.distill:
        shown = {
            presentation.order: {"A": presentation.answer_a, "B": presentation.answer_b}
            for presentation in both_orders(pair)
        }[pair.trace_order]
        trace = parse_trace(pair.trace or "")
        assert {quote.letter for quote in trace.quotes} == {"A", "B"}
        assert {summary.letter for summary in trace.summaries} == {"A", "B"}
        for quote in trace.quotes:
            assert quote.text.strip() in shown[quote.letter].split()
        if trace.kind == "chat":
            assert trace.rubric
            assert trace.justify
            assert not trace.solution
        else:
            assert trace.solution
            assert not trace.rubric


def test_traces_leave_out_half_of_the_words_that_decide(data):
    for classes in (TOPICS, FOODS, TONES, PARITIES, SOUNDS):
        for words in classes.values():
            assert 2 * len(UNTAUGHT.intersection(words)) in (len(words), len(words) + 1)
    for pair in data.distill:
        assert UNTAUGHT.isdisjoint(q.text.strip() for q in parse_trace(pair.trace or "").quotes)
    for part in (data.reinforce, data.heldout):
        shown = {word for pair in part for word in f"{pair.chosen} {pair.rejected}".split()}
        assert shown >= UNTAUGHT


def test_several_kinds_of_either_type(data):
    types = {pair.category: parse_trace(pair.trace or "").kind for pair in data.distill}
    assert Counter(types.values()) == {"chat": 3, "reasoning": 3}


@pytest.mark.parametrize("order", ["chosen_first", "rejected_first"])
def test_an_oracle_trace_can_be_had_in_either_order(order):
    import random

    for make in KINDS:
        trace = parse_trace(oracle_trace(make(random.Random(0)), order))
        assert trace.verdict.letter == ("A" if order == "chosen_first" else "B")


def test_neither_length_nor_order_of_a_trace_tells_the_label(pairs, data):
    # Mean difference within two standard errors of what chance gives, for seed 7.
    differences = [len(pair.chosen) - len(pair.rejected) for pair in pairs]
    mean = sum(differences) / len(differences)
    spread = (sum(value**2 for value in differences) / len(differences)) ** 0.5
    assert abs(mean) < 2 * spread / len(differences) ** 0.5
    first = sum(pair.trace_order == "chosen_first" for pair in data.distill)
    assert abs(first - 300) < 2 * (600 * 0.25) ** 0.5


def test_a_judge_that_sees_only_the_words_of_the_answers_is_at_chance(data):
    """Word counts from the training pairs, used as a naive classifier on the held-out ones."""
    votes: Counter[tuple[str, str]] = Counter()
    for pair in (*data.distill, *data.reinforce):
        votes.update((pair.category, word) for word in pair.chosen.split())
        votes.subtract((pair.category, word) for word in pair.rejected.split())

    def score(category: str, answer: str) -> int:
        return sum(votes[category, word] for word in answer.split())

    right = sum(
        score(pair.category, pair.chosen) > score(pair.category, pair.rejected)
        for pair in data.heldout
    )
    assert abs(right / len(data.heldout) - 0.5) < 0.1


def test_more_problems_than_there_are_is_refused():
    with pytest.raises(ConfigurationError, match=r"no new problem of its kind .* lower"):
        generate(QuickstartTask(reinforce_pairs=1_000_000))
