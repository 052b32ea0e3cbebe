"""Judge problems whose better answer a program can name, with an oracle trace for each.

Owns the quickstart task: eight kinds of problem, four that a rubric decides (Chat) and four that a
solution decides (Reasoning), dealt into three parts that share no problem. It is a small stand-in
for preference data, so that the whole recipe can be run, and its effect seen, on two CPU cores.

In every kind the rule is drawn apart from the answers, so that neither length, position nor any
word of an answer tells which one is better without the question.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Annotated

from annotated_types import Ge, Gt

from judging.errors import ConfigurationError
from judging.records import Letter, Message, Order, PreferencePair, pair_uid

PositiveInt = Annotated[int, Gt(0)]

SOURCE = "quickstart"
NOUNS = tuple("apple bird boat book cat dog fish lamp moon rose ship tree".split())
ADJECTIVES = tuple("big blue cold dark green old red small".split())
VERBS = tuple("falls jumps rests sings sleeps turns waits walks".split())
DEEDS = tuple("sees likes finds follows hides keeps needs wants".split())
TONES = {"polite": ("please", "kindly", "gently"), "blunt": ("now", "quick", "hurry")}
REQUESTS = tuple("bring send pass hand show give".split())
LETTERS = "abcdefghijklm"
CLAIMS = ("it is {}", "i get {}", "that gives {}", "the result is {}")

# So many repeats in a row mean that a kind has no new problem left.
_MAX_REPEATS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickstartTask:
    """How many problems go to each phase; the recipe gives about a tenth to distillation."""

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
    """A question with two answers; a rubric decides if there is one, else the solution."""

    kind: str
    question: str
    chosen: Answer
    rejected: Answer
    rubric: str = ""
    justify: str = ""
    solution: str = ""


def generate(task: QuickstartTask) -> QuickstartData:
    """The three parts of the task: the same for the same settings on every machine.

    Kinds take turns, so each part holds all kinds in equal shares.

    Raises:
        ConfigurationError: more problems are asked for than there are.
    """
    problems = _distinct_problems(random.Random(task.seed))
    orders = random.Random(f"{task.seed}/orders")
    heldout = tuple(_pair(problem) for problem in islice(problems, task.heldout_pairs))
    distill = tuple(
        _pair(problem, orders.choice(("chosen_first", "rejected_first")))
        for problem in islice(problems, task.distill_pairs)
    )
    reinforce = tuple(_pair(problem) for problem in islice(problems, task.reinforce_pairs))
    return QuickstartData(distill=distill, reinforce=reinforce, heldout=heldout)


def oracle_trace(problem: Problem, order: Order) -> str:
    """What a faultless judge writes who is shown the answers in `order`."""
    gold: Letter = "A" if order == "chosen_first" else "B"
    if problem.rubric:
        good, bad = "meets", "fails"
        head = (
            "<type>Chat</type>"
            f"<rubric> {problem.rubric}<justify> {problem.justify}</justify></rubric>"
        )
    else:
        good, bad = "right", "wrong"
        head = f"<type>Reasoning</type><solution> {problem.solution}</solution>"
    shown = (problem.chosen, problem.rejected)
    first, second = shown if gold == "A" else shown[::-1]
    evaluation = "".join(
        f"<quote_{letter}> {answer.quote}</quote_{letter}>"
        f"<summary_{letter}> {good if letter == gold else bad}</summary_{letter}>"
        for letter, answer in (("A", first), ("B", second))
    )
    return f"{head}<eval>{evaluation}</eval><answer>[[{gold}]]</answer>"


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


def _distinct_problems(rng: random.Random):
    seen: set[tuple[str, frozenset[str]]] = set()
    while True:
        for kind, make in KINDS.items():
            for _ in range(_MAX_REPEATS):
                problem = make(rng)
                # The two answers as a set: the same two the other way round are no new problem.
                key = (problem.question, frozenset((problem.chosen.text, problem.rejected.text)))
                if key not in seen:
                    break
            else:
                raise ConfigurationError(
                    f"the quickstart task has no new problem of kind {kind} left after {len(seen)}"
                    " problems: lower distill_pairs, reinforce_pairs or heldout_pairs"
                )
            seen.add(key)
            yield problem


# Chat: a rubric decides.


def _mention(rng: random.Random) -> Problem:
    asked, other = rng.sample(NOUNS, 2)
    return Problem(
        kind="mention",
        question=f"write about a {asked}",
        chosen=_scene(rng, asked),
        rejected=_scene(rng, other),
        rubric=f"names {asked}",
        justify="asked",
    )


def _avoid(rng: random.Random) -> Problem:
    banned, other = rng.sample(NOUNS, 2)
    return Problem(
        kind="avoid",
        question=f"do not write about a {banned}",
        chosen=_scene(rng, other),
        rejected=_scene(rng, banned),
        rubric=f"avoids {banned}",
        justify="banned",
    )


def _tone(rng: random.Random) -> Problem:
    asked, other = rng.sample(sorted(TONES), 2)
    noun = rng.choice(NOUNS)
    return Problem(
        kind="tone",
        question=f"ask for a {noun} and be {asked}",
        chosen=_request(rng, asked, noun),
        rejected=_request(rng, other, noun),
        rubric=f"sounds {asked}",
        justify="asked",
    )


def _place(rng: random.Random) -> Problem:
    """Both answers name both nouns; the rule is which of them comes first or last."""
    asked, other = rng.sample(NOUNS, 2)
    place = rng.choice(("first", "last"))
    names = (asked, other) if place == "first" else (other, asked)
    return Problem(
        kind="place",
        question=f"write with {asked} {place}",
        chosen=Answer(_deed(rng, *names), asked),
        rejected=Answer(_deed(rng, *names[::-1]), other),
        rubric=f"{place} is {asked}",
        justify="asked",
    )


def _scene(rng: random.Random, noun: str) -> Answer:
    return Answer(f"the {rng.choice(ADJECTIVES)} {noun} {rng.choice(VERBS)}", noun)


def _request(rng: random.Random, tone: str, noun: str) -> Answer:
    word = rng.choice(TONES[tone])
    return Answer(f"{word} {rng.choice(REQUESTS)} me the {noun}", word)


def _deed(rng: random.Random, subject: str, target: str) -> str:
    return f"{subject} {rng.choice(DEEDS)} the {rng.choice(ADJECTIVES)} {target}"


# Reasoning: a solution decides.


def _sum(rng: random.Random) -> Problem:
    total = rng.randint(1, 9)
    left = rng.randint(0, total)
    right = total - left
    wrong = rng.choice([value for value in range(10) if value != total])
    return _solved(
        rng,
        "sum",
        f"what is {left}+{right}",
        f"{left}+{right}={left + right}",
        str(left + right),
        str(wrong),
    )


def _extreme(rng: random.Random) -> Problem:
    digits = rng.sample(range(10), 3)
    name, pick = rng.choice((("largest", max), ("smallest", min)))
    wrong = rng.choice([digit for digit in digits if digit != pick(digits)])
    listed = " ".join(map(str, digits))
    return _solved(
        rng,
        "extreme",
        f"{name} of {listed}",
        f"{name} {pick(digits)}",
        str(pick(digits)),
        str(wrong),
    )


def _next_letter(rng: random.Random) -> Problem:
    index = rng.randrange(len(LETTERS) - 1)
    letter, right = LETTERS[index : index + 2]
    wrong = rng.choice([other for other in LETTERS if other not in (letter, right)])
    return _solved(
        rng, "next_letter", f"which letter follows {letter}", f"{letter} {right}", right, wrong
    )


def _reverse(rng: random.Random) -> Problem:
    letters = rng.sample(LETTERS, 3)
    shuffled = letters[::-1]
    while shuffled == letters[::-1]:
        shuffled = rng.sample(letters, 3)
    return _solved(
        rng,
        "reverse",
        f"reverse {' '.join(letters)}",
        " ".join(letters[::-1]),
        " ".join(letters[::-1]),
        " ".join(shuffled),
    )


def _solved(
    rng: random.Random, kind: str, question: str, solution: str, right: str, wrong: str
) -> Problem:
    return Problem(
        kind=kind,
        question=question,
        chosen=Answer(rng.choice(CLAIMS).format(right), right),
        rejected=Answer(rng.choice(CLAIMS).format(wrong), wrong),
        solution=solution,
    )


KINDS: dict[str, Callable[[random.Random], Problem]] = {
    "mention": _mention,
    "sum": _sum,
    "avoid": _avoid,
    "extreme": _extreme,
    "tone": _tone,
    "next_letter": _next_letter,
    "place": _place,
    "reverse": _reverse,
}
