"""A quickstart teacher whose errors are of one sort, as those of a model are: not spread evenly.

A quarter of all its traces is wrong: those of one kind of problem, and half of those of another.
"""

from __future__ import annotations

from judging.quickstart_teacher import ErringOracle
from judging.records import Letter, Presentation
from synthesis.records import TeacherRequest

WRONG_SHARES = {"avoid": 1.0, "tone": 0.5}  # by kind, of which there are six, equally frequent


def answer(request: TeacherRequest) -> str:
    return trace(request.presentation, letter=request.verdict)


def trace(presentation: Presentation, letter: Letter | None = None) -> str:
    """Its trace; one that is told the letter writes for that one."""
    share = WRONG_SHARES.get(presentation.pair.category or "", 0.0)
    return ErringOracle(wrong_share=share).trace(presentation, letter=letter)
