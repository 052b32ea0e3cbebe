"""Judge problems whose better answer a program can name, with an oracle trace for each.

Owns the quickstart task: six kinds of problem, three that a rubric decides (Chat) and three that a
solution decides (Reasoning), dealt into parts that share no problem. It is a small stand-in for
preference data, so that the whole recipe can be run, and its effect seen, on two CPU cores; what
a judge scores on it says nothing about real preferences.

In every kind the rule is drawn apart from the answers, so that neither length, position nor any
word of an answer tells which one is better without the question.

Traces are few, and so they leave out some of the words that decide (`UNTAUGHT`): distillation ends
with a judge that has the form and a part of the answers, and the rest it must find out from its
verdicts alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, get_args

from annotated_types import Ge, Gt

from judging.errors import ConfigurationError
from judging.records import Letter, Message, Order, PreferencePair, pair_uid

PositiveInt = Annotated[int, Gt(0)]

SOURCE = "quickstart"
TOPICS = {
    "animal": ("bird", "cat", "dog", "fish", "frog", "goat"),
    "thing": ("boat", "book", "coat", "door", "lamp", "ring"),
}
FOODS = {
    "meat": ("bacon", "beef", "ham", "lamb", "pork", "steak"),
    "fruit": ("apple", "grape", "lemon", "mango", "peach", "plum"),
}
TONES = {
    "polite": ("please", "kindly", "gently", "warmly"),
    "blunt": ("now", "quick", "hurry", "fast"),
}
PARITIES = {"even": tuple("02468"), "odd": tuple("13579")}
SOUNDS = {"vowel": tuple("aeiou"), "consonant": tuple("bdgmt")}

# The later words of each class: no problem for distillation is decided by one of them.
UNTAUGHT = frozenset(
    word
    for classes in (TOPICS, FOODS, TONES, PARITIES, SOUNDS)
    for words in classes.values()
    for word in words[len(words) // 2 :]
)

ADJECTIVES = ("big", "blue", "cold", "dark", "green", "old", "red", "small")
VERBS = ("falls", "jumps", "rests", "sings", "sleeps", "turns", "waits", "walks")
SERVINGS = ("baked", "cold", "fresh", "fried", "salted", "sliced", "warm", "whole")
SIDES = ("beans", "bread", "corn", "noodles", "potatoes", "rice", "salad", "soup")
REQUESTS = ("bring", "give", "hand", "pass", "send", "show")
CLAIMS = (
    "it is {}",
    "we get {}",
    "we say {}",
    "we would pick {}",
    "that gives {}",
    "this makes {}",
    "the answer is {}",
    "the result is {}",
    "my answer is {}",
    "so it is {}",
)

# So many repeats in a row mean that a kind has hardly a new problem left.
_MAX_REPEATS = 1000

Content = tuple[str, frozenset[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickstartTask:
    """How many problems each phase gets; as in RM-R1, about a tenth of those for training."""

    seed: Annotated[int, Ge(0)] = 0
    distill_pairs: PositiveInt = 640
    reinforce_pairs: PositiveInt = 6400
    heldout_pairs: PositiveInt = 256


@dataclass(frozen=True, slots=True)
class QuickstartData:
    distill: tuple[PreferencePair, ...]  # each with a trace and the order it was written for
    reinforce: tuple[PreferencePair, ...]
    heldout: tuple[PreferencePair, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    quote: str  # the words of `text` that decide


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with two answers, judged by a rubric (Chat) or else a solution (Reasoning)."""

    kind: str
    question: str
    chosen: Answer
    rejected: Answer
    rubric: str = ""
    justify: str = ""
    solution: str = ""

    @property
    def content(self) -> Content:
        """The question and both answers, whichever is better: reversed, a problem is not new."""
        return self.question, frozenset((self.chosen.text, self.rejected.text))


def generate(task: QuickstartTask) -> QuickstartData:
    """The three parts of the task: the same for the same settings on every machine.

    Kinds take turns, so each part holds all of them in equal shares.

    Raises:
        ConfigurationError: more problems are asked for than there are.
    """
    rng = random.Random(task.seed)
    orders = random.Random(f"{task.seed}/orders")
    seen: set[Content] = set()
    heldout = islice(_new_problems(rng, seen), task.heldout_pairs)
    taught = islice(_new_problems(rng, seen, _is_taught), task.distill_pairs)
    reinforce = islice(_new_problems(rng, seen), task.reinforce_pairs)
    # The parts share `rng` and `seen`: each is complete before the next is begun.
    return QuickstartData(
        heldout=tuple(_pair(problem) for problem in heldout),
        distill=tuple(_pair(problem, orders.choice(get_args(Order))) for problem in taught),
        reinforce=tuple(_pair(problem) for problem in reinforce),
    )


def oracle_trace(problem: Problem, order: Order) -> str:
    """What a faultless judge writes who is shown the answers in `order`.

    The better answer is quoted first. What stands in a tag begins with a space, because a word is
    then the same token as in the middle of a sentence, which makes it easy to copy.
    """
    gold: Letter
    other: Letter
    gold, other = ("A", "B") if order == "chosen_first" else ("B", "A")
    if problem.rubric:
        good, bad = "meets", "fails"
        head = (
            "<type>Chat</type>"
            f"<rubric> {problem.rubric}<justify> {problem.justify}</justify></rubric>"
        )
    else:
        good, bad = "right", "wrong"
        head = f"<type>Reasoning</type><solution> {problem.solution}</solution>"
    evaluation = "".join(
        f"<quote_{letter}> {answer.quote}</quote_{letter}>"
        f"<summary_{letter}> {summary}</summary_{letter}>"
        for letter, answer, summary in (
            (gold, problem.chosen, good),
            (other, problem.rejected, bad),
        )
    )
    return f"{head}<eval>{evaluation}</eval><answer>[[{gold}]]</answer>"


def _is_taught(problem: Problem) -> bool:
    return UNTAUGHT.isdisjoint((problem.chosen.quote, problem.rejected.quote))


def _new_problems(
    rng: random.Random,
    seen: set[Content],
    is_wanted: Callable[[Problem], bool] = lambda _: True,
) -> Iterator[Problem]:
    while True:
        for make in KINDS:
            for _ in range(_MAX_REPEATS):
                problem = make(rng)
                if is_wanted(problem) and problem.content not in seen:
                    break
            else:
                raise ConfigurationError(
                    f"the quickstart task has no new problem of its kind {make.__name__[1:]!r} left"
                    f" after {len(seen)} problems: lower distill_pairs, reinforce_pairs or"
                    " heldout_pairs"
                )
            seen.add(problem.content)
            yield problem


def _pair(problem: Problem, trace_order: Order | None = None) -> PreferencePair:
    conversation = (Message("user", problem.question),)
    return PreferencePair(
        uid=pair_uid(conversation, problem.chosen.text, problem.rejected.text),
        conversation=conversation,
        chosen=problem.chosen.text,
        rejected=problem.rejected.text,
        source=SOURCE,
        category=problem.kind,
        trace=oracle_trace(problem, trace_order) if trace_order else None,
        trace_order=trace_order,
    )


def _topic(rng: random.Random) -> Problem:
    asked, other = rng.sample(sorted(TOPICS), 2)
    return Problem(
        kind="topic",
        question=f"write about some {asked}",
        chosen=_scene(rng, asked),
        rejected=_scene(rng, other),
        rubric=f"names {asked}",
        justify="asked",
    )


def _avoid(rng: random.Random) -> Problem:
    banned, other = rng.sample(sorted(FOODS), 2)
    return Problem(
        kind="avoid",
        question=f"suggest a meal without {banned}",
        chosen=_meal(rng, other),
        rejected=_meal(rng, banned),
        rubric=f"avoids {banned}",
        justify="banned",
    )


def _tone(rng: random.Random) -> Problem:
    asked, other = rng.sample(sorted(TONES), 2)
    noun = rng.choice([noun for nouns in TOPICS.values() for noun in nouns])
    return Problem(
        kind="tone",
        question=f"ask for a {noun} and be {asked}",
        chosen=_request(rng, asked, noun),
        rejected=_request(rng, other, noun),
        rubric=f"sounds {asked}",
        justify="asked",
    )


def _sum(rng: random.Random) -> Problem:
    total = rng.randint(0, 9)
    left = rng.randint(0, total)
    terms = f"{left}+{total - left}"
    right, wrong = ("odd", "even") if total % 2 else ("even", "odd")
    return Problem(
        kind="sum",
        question=f"is {terms} odd or even",
        chosen=_claim(rng, right),
        rejected=_claim(rng, wrong),
        solution=f"{terms}={total} {right}",
    )


def _parity(rng: random.Random) -> Problem:
    return _member(rng, "parity", "number", PARITIES)


def _sound(rng: random.Random) -> Problem:
    return _member(rng, "sound", "letter", SOUNDS)


def _member(
    rng: random.Random, kind: str, noun: str, classes: dict[str, tuple[str, ...]]
) -> Problem:
    """Which answer belongs to the class asked for; the solution lists that class."""
    asked, other = rng.sample(sorted(classes), 2)
    return Problem(
        kind=kind,
        question=f"name a {noun} that is {asked}",
        chosen=_claim(rng, rng.choice(classes[asked])),
        rejected=_claim(rng, rng.choice(classes[other])),
        solution=f"{asked}: {' '.join(classes[asked])}",
    )


def _scene(rng: random.Random, topic: str) -> Answer:
    noun = rng.choice(TOPICS[topic])
    return Answer(f"the {rng.choice(ADJECTIVES)} {noun} {rng.choice(VERBS)}", noun)


def _meal(rng: random.Random, food: str) -> Answer:
    item = rng.choice(FOODS[food])
    return Answer(f"{rng.choice(SERVINGS)} {item} with {rng.choice(SIDES)}", item)


def _request(rng: random.Random, tone: str, noun: str) -> Answer:
    word = rng.choice(TONES[tone])
    return Answer(f"{word} {rng.choice(REQUESTS)} me the {noun}", word)


def _claim(rng: random.Random, value: str) -> Answer:
    return Answer(rng.choice(CLAIMS).format(value), value)


KINDS: tuple[Callable[[random.Random], Problem], ...] = (
    _topic,
    _sum,
    _avoid,
    _parity,
    _tone,
    _sound,
)
