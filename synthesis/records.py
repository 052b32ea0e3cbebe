"""What is asked of a teacher, and what comes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from judging.errors import GavelError
from judging.records import Letter, Message, Presentation


@dataclass(frozen=True, slots=True)
class TeacherRequest:
    """One trace that is asked for; what an imported teacher is given."""

    key: str  # hash of all that decides the answer
    presentation: Presentation
    messages: tuple[Message, ...]
    sample: int  # index within its presentation and pass
    temperature: float
    max_new_tokens: int
    verdict: Letter | None = None  # the gold one, in a pass that shows it
    failed_trace: str | None = None  # the one that this pass is to do better


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a service counts, and charges."""

    input_tokens: int = 0
    cached_input_tokens: int = 0  # of these
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a teacher wrote."""

    text: str
    is_truncated: bool = False  # cut off by the token limit
    usage: Usage = Usage()
    usage_is_estimate: bool = False  # the service did not say

    def __post_init__(self) -> None:
        # Halves of surrogate pairs, which no file takes and no tokenizer reads.
        text = self.text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        object.__setattr__(self, "text", text)


class RequestFailed(GavelError):
    """A request that this teacher does not answer, however often it is asked; others may do."""


class Unanswered(RequestFailed):
    """One that went wrong in all tries; it may be answered another time."""


class Spent(GavelError):
    """No further request may be sent: `max_cost_usd` or `max_requests` is used up."""


State = Literal["kept", "rejected", "failed", "unasked"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One answer on the way to an outcome; `key` is the request's."""

    order: str
    number: int  # of the pass, from 1
    sample: int
    teacher: str
    key: str
    rejections: tuple[str, ...] = ()  # none: it may be imitated
    is_kept: bool = False
    error: str | None = None  # why there is no answer
    is_unanswered: bool = False  # it may be answered another time


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one pair."""

    pair_uid: str
    source: str
    state: State
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True, slots=True)
class Undecided:
    """An answer of which no pair's outcome knows."""

    teacher: str
    model: str
    text: str
    is_from_cache: bool


@dataclass(frozen=True, slots=True)
class Spending:
    """Of one teacher, without what came from the cache."""

    teacher: str
    model: str
    answers: int
    tries: int
    input_tokens: int
    output_tokens: int
    cost_nusd: int
    estimated: int  # answers of which the service did not say the tokens
    from_cache: int
    in_doubt: int  # tries of which nobody knows what became


def request_key(
    uses: str,
    model: str | None,
    messages: Sequence[Message],
    *,
    sample: int,
    temperature: float,
    max_new_tokens: int,
    parameters: Mapping[str, Any],
) -> str:
    """What names a request, in every run: equal keys ask for the same thing.

    Where the service is (`base_url`) is not part of it: a model may move.
    """
    content = [
        uses,
        model,
        [[message.role, message.content] for message in messages],
        sample,
        temperature,
        max_new_tokens,
        parameters,
    ]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]
