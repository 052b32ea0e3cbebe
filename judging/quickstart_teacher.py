"""A teacher for the quickstart task that sees what any teacher sees: question and two answers.

The inverse of `judging.quickstart`'s generators: it reads the kind of problem off the texts, finds
the better answer itself and writes the oracle's trace. It knows no label. One that errs reads the
question as if it asked for the other class, or adds up wrongly, and judges soundly from there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from annotated_types import Ge, Le

from judging.errors import DataError
from judging.quickstart import (
    ADJECTIVES,
    CLAIMS,
    FOODS,
    PARITIES,
    REQUESTS,
    SERVINGS,
    SIDES,
    SOUNDS,
    TONES,
    TOPICS,
    VERBS,
    Answer,
    Problem,
    oracle_trace,
)
from judging.records import Letter, Message, Presentation

Classes = Mapping[str, tuple[str, ...]]

_OUTCOMES: Classes = {"odd": ("odd",), "even": ("even",)}
_NOUNS = tuple(noun for nouns in TOPICS.values() for noun in nouns)
_HASH_BITS = 64


def teach(presentation: Presentation, *, letter: Letter | None = None) -> str:
    """The trace of a teacher that is shown these two answers.

    Args:
        presentation: a quickstart pair; its label is not looked at.
        letter: the verdict to write a trace for; without one, the teacher finds it. For the worse
            answer it is a well-formed trace that misreads the question.

    Raises:
        DataError: the pair is no quickstart problem.
    """
    answers = presentation.answer_a, presentation.answer_b
    problem = problem_of(presentation.pair.conversation, answers)
    if letter is not None and letter != _letter(problem, answers):
        problem = problem_of(presentation.pair.conversation, answers, misread=True)
    is_first = _letter(problem, answers) == "A"
    return oracle_trace(problem, "chosen_first" if is_first else "rejected_first")


@dataclass(frozen=True, slots=True, kw_only=True)
class ErringOracle:
    """A teacher that errs in a share of its traces; the same ones on every machine."""

    wrong_share: Annotated[float, Ge(0), Le(1)] = 0.0
    seed: Annotated[int, Ge(0)] = 0

    def errs(self, presentation: Presentation, sample: int = 0) -> bool:
        """Whether its trace number `sample` of this presentation is a wrong one."""
        name = f"{self.seed}/{presentation.uid}/{sample}".encode("utf-8", "surrogatepass")
        drawn = int.from_bytes(hashlib.sha256(name).digest()[: _HASH_BITS // 8], "big")
        return drawn < self.wrong_share * 2**_HASH_BITS

    def trace(
        self, presentation: Presentation, *, sample: int = 0, letter: Letter | None = None
    ) -> str:
        """Its trace number `sample`; a teacher that is told the `letter` writes for that one.

        Raises:
            DataError: the pair is no quickstart problem.
        """
        if letter is None and self.errs(presentation, sample):
            right = teach(presentation)
            letter = "B" if right.endswith("[[A]]</answer>") else "A"
        return teach(presentation, letter=letter)


def problem_of(
    conversation: Sequence[Message], answers: tuple[str, str], *, misread: bool = False
) -> Problem:
    """The quickstart problem that these texts state, with the better answer as the chosen one.

    Args:
        conversation: the one turn that asks.
        answers: the two answers in any order.
        misread: read the question as one who takes the worse answer for the better one.

    Raises:
        DataError: no quickstart problem, or one whose answers are equally good.
    """
    if len(conversation) == 1:
        for question, read in _KINDS:
            if found := re.fullmatch(question, conversation[0].content):
                return read(found, answers, misread)
    raise DataError(
        f"the pair is no quickstart problem: none of its {len(_KINDS)} kinds asks"
        f" {conversation[-1].content[:80] if conversation else ''!r}; the quickstart teacher judges"
        " quickstart pairs alone, so name a model as the teacher"
    )


def _letter(problem: Problem, answers: tuple[str, str]) -> Letter:
    return "A" if problem.chosen.text == answers[0] else "B"


def _other(classes: Classes, name: str) -> str:
    return next(other for other in classes if other != name)


def _choose(
    answers: tuple[str, str], pattern: str, classes: Classes, good: str
) -> tuple[Answer, Answer]:
    """The answer whose word is of the class `good`, then the one of the other class."""
    words = "|".join(word for words in classes.values() for word in words)
    by_class: dict[str, Answer] = {}
    for text in answers:
        if found := re.fullmatch(pattern.format(words=f"(?P<word>{words})"), text):
            word = found["word"]
            name = next(name for name, words in classes.items() if word in words)
            by_class[name] = Answer(text, word)
    if len(by_class) != len(classes):
        raise DataError(
            f"the pair is no quickstart problem: its answers {answers[0][:80]!r} and"
            f" {answers[1][:80]!r} are not one of each of {', '.join(classes)}; the quickstart"
            " teacher judges quickstart pairs alone, so name a model as the teacher"
        )
    return by_class[good], by_class[_other(classes, good)]


def _any(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(words)})"


_SCENE = f"the {_any(ADJECTIVES)} {{words}} {_any(VERBS)}"
_MEAL = f"{_any(SERVINGS)} {{words}} with {_any(SIDES)}"
_CLAIM = f"{_any(claim.removesuffix('{}') for claim in CLAIMS)}{{words}}"


def _topic(found: re.Match[str], answers: tuple[str, str], misread: bool) -> Problem:
    asked = _other(TOPICS, found[1]) if misread else found[1]
    chosen, rejected = _choose(answers, _SCENE, TOPICS, asked)
    return Problem("topic", found[0], chosen, rejected, rubric=f"names {asked}", justify="asked")


def _avoid(found: re.Match[str], answers: tuple[str, str], misread: bool) -> Problem:
    banned = _other(FOODS, found[1]) if misread else found[1]
    chosen, rejected = _choose(answers, _MEAL, FOODS, _other(FOODS, banned))
    return Problem("avoid", found[0], chosen, rejected, rubric=f"avoids {banned}", justify="banned")


def _tone(found: re.Match[str], answers: tuple[str, str], misread: bool) -> Problem:
    asked = _other(TONES, found[2]) if misread else found[2]
    pattern = f"{{words}} {_any(REQUESTS)} me the {found[1]}"
    chosen, rejected = _choose(answers, pattern, TONES, asked)
    return Problem("tone", found[0], chosen, rejected, rubric=f"sounds {asked}", justify="asked")


def _sum(found: re.Match[str], answers: tuple[str, str], misread: bool) -> Problem:
    total = int(found[2]) + int(found[3])
    if misread:  # by one, so that it is of the other kind, and a digit stays a digit
        total += 1 if total < 9 else -1
    right = "odd" if total % 2 else "even"
    chosen, rejected = _choose(answers, _CLAIM, _OUTCOMES, right)
    return Problem("sum", found[0], chosen, rejected, solution=f"{found[1]}={total} {right}")


def _member(
    kind: str, classes: Classes, found: re.Match[str], answers: tuple[str, str], misread: bool
) -> Problem:
    asked = _other(classes, found[1]) if misread else found[1]
    chosen, rejected = _choose(answers, _CLAIM, classes, asked)
    solution = f"{asked}: {' '.join(classes[asked])}"
    return Problem(kind, found[0], chosen, rejected, solution=solution)


# Of each kind its question, and how its answers are read.
_KINDS: tuple[tuple[str, Callable[[re.Match[str], tuple[str, str], bool], Problem]], ...] = (
    (f"write about some ({'|'.join(TOPICS)})", _topic),
    (r"is (([0-9])\+([0-9])) odd or even", _sum),
    (f"suggest a meal without ({'|'.join(FOODS)})", _avoid),
    (f"name a number that is ({'|'.join(PARITIES)})", partial(_member, "parity", PARITIES)),
    (f"ask for a ({'|'.join(_NOUNS)}) and be ({'|'.join(TONES)})", _tone),
    (f"name a letter that is ({'|'.join(SOUNDS)})", partial(_member, "sound", SOUNDS)),
)
