"""Whether a trace may be imitated: what a judge is to learn is right, complete and true.

Owns the checks that stand between a teacher's text and the data for distillation. It does not ask
teachers and keeps no counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from annotated_types import Ge, Gt

from judging.errors import ConfigurationError
from judging.grammar import is_in_order, weighs_whole
from judging.mentions import mentions_verdict
from judging.quotations import occurs
from judging.records import Letter, Presentation, Reason, Trace
from judging.traces import parse_trace

_ANSWER_END_CHARS = 30  # an answer's closing tag with some blanks in it
_ANSWER_END = re.compile(r"<\s*+/\s*+answer\s*+>$", re.IGNORECASE)


class Rejection(StrEnum):
    """Why a trace may not be imitated."""

    WRONG_VERDICT = "wrong_verdict"  # it ends in the other letter
    NO_VERDICT = "no_verdict"  # it gives no letter, or both
    TRUNCATED = "truncated"  # cut off by the token limit, before its verdict or after
    GRAMMAR = "grammar"  # a section is missing, open, misplaced or repeated, or more text follows
    WEIGHTS = "weights"  # the rubric's weights do not sum to 100 %
    QUOTES = "quotes"  # a quote does not occur in the answer it claims to be taken from
    MENTIONS_VERDICT = "mentions_verdict"  # it betrays what its writer was told or shown
    TOO_SHORT = "too_short"  # fewer characters than `min_chars`
    TOO_LONG = "too_long"  # more characters than `max_chars`


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceChecks:
    """The checks that are on; the verdict is always checked."""

    grammar: bool = True
    weights: bool = True  # of chat judgments alone; those of the compact template have none
    quotes: bool = True  # a judgment need not quote
    mentions: bool = True  # of teachers that were told the verdict
    min_chars: Annotated[int, Ge(0)] = 0
    max_chars: Annotated[int, Gt(0)] | None = None

    def __post_init__(self) -> None:
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ConfigurationError(
                f"max_chars ({self.max_chars}) is below min_chars ({self.min_chars}): no trace"
                " could pass; raise max_chars or lower min_chars"
            )


def verify_trace(
    presentation: Presentation,
    text: str,
    *,
    checks: TraceChecks,
    truncated: bool = False,
    told_verdict: bool = False,
    strict_tail: bool = False,
) -> tuple[Trace, tuple[Rejection, ...]]:
    """The parts of a teacher's text, and every reason not to imitate it; none if it may be.

    Args:
        presentation: the pair as the teacher saw it, with its gold verdict.
        text: the completion, without special tokens.
        checks: which checks are on.
        truncated: the text was cut off by the token limit.
        told_verdict: the teacher was told the verdict, so it is checked that it does not say so.
        strict_tail: the verdict is read by RM-R1's training rule, as `judge.strict_tail` asks.
    """
    trace = parse_trace(text, strict_tail=strict_tail, truncated=truncated)
    letter = trace.verdict.letter
    failed = {
        Rejection.WRONG_VERDICT: letter is not None and letter != presentation.gold,
        Rejection.NO_VERDICT: trace.verdict.reason in (Reason.NONE, Reason.CONFLICTING),
        Rejection.TRUNCATED: truncated,
        Rejection.GRAMMAR: checks.grammar and not _is_one_judgment(trace, text),
        Rejection.WEIGHTS: (
            checks.weights and trace.kind == "chat" and not weighs_whole(trace.rubric)
        ),
        Rejection.QUOTES: checks.quotes and not _are_quotes_true(presentation, trace),
        Rejection.MENTIONS_VERDICT: (
            checks.mentions and told_verdict and mentions_verdict(text, presentation)
        ),
        Rejection.TOO_SHORT: len(text) < checks.min_chars,
        Rejection.TOO_LONG: checks.max_chars is not None and len(text) > checks.max_chars,
    }
    return trace, tuple(rejection for rejection, is_met in failed.items() if is_met)


def _is_one_judgment(trace: Trace, text: str) -> bool:
    """The sections in order, after at most one type tag, which comes first; then the end."""
    is_last_word = _ANSWER_END.search(text.rstrip()[-_ANSWER_END_CHARS:]) is not None
    return is_in_order(trace) and "type" not in trace.outline[1:] and is_last_word


def _are_quotes_true(presentation: Presentation, trace: Trace) -> bool:
    answers: dict[Letter, str] = {"A": presentation.answer_a, "B": presentation.answer_b}
    return all(occurs(quote.text, answers[quote.letter]) for quote in trace.quotes)
