"""The records that carry a preference pair from a file to a judgment.

`PreferencePair` -> `Presentation` -> `JudgePrompt` -> `Rollout` -> `Judgment`. All are frozen;
none knows of Ray, vLLM or torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Letter = Literal["A", "B"]
Order = Literal["chosen_first", "rejected_first"]


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str


def pair_uid(conversation: Sequence[Message], chosen: str, rejected: str) -> str:
    """The content hash that names a pair: 16 hex digits of SHA-256 over canonical JSON."""
    turns = [[message.role, message.content] for message in conversation]
    content = json.dumps([turns, chosen, rejected], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one conversation, of which people prefer `chosen`."""

    uid: str  # hash of the content (conversation and both answers), the same on every machine
    conversation: tuple[Message, ...]  # ends with the user turn that both answers reply to
    chosen: str
    rejected: str
    source: str = ""  # file or data set it comes from
    category: str = ""
    trace: str | None = None  # a reasoning trace that ends in a verdict, for distillation
    trace_order: Order | None = None  # the order in which that trace saw the answers


@dataclass(frozen=True, slots=True)
class Presentation:
    """A pair as the judge sees it: one of the two orders."""

    pair: PreferencePair
    order: Order

    @property
    def uid(self) -> str:
        return f"{self.pair.uid}/{self.order}"

    @property
    def gold(self) -> Letter:
        return "A" if self.order == "chosen_first" else "B"

    @property
    def answer_a(self) -> str:
        return self.pair.chosen if self.order == "chosen_first" else self.pair.rejected

    @property
    def answer_b(self) -> str:
        return self.pair.rejected if self.order == "chosen_first" else self.pair.chosen


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A presentation rendered for the model; `token_ids` is what the engine is given."""

    presentation: Presentation
    messages: tuple[Message, ...]
    token_ids: tuple[int, ...]


class FinishReason(StrEnum):
    STOP = "stop"  # the model ended its turn
    LENGTH = "length"  # cut off by the token limit
    ABORT = "abort"  # taken back by the engine


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One sampled completion, as the engine wrote it."""

    presentation_uid: str
    sample: int  # index within its group
    seed: int
    token_ids: NDArray[np.int32]  # [tokens], without the prompt, with the end token if written
    # [tokens], of the sampled tokens at the sampling temperature; [0] if they were not asked for
    logprobs: NDArray[np.float32]
    text: str  # decoded without special tokens
    finish_reason: FinishReason
    weight_version_min: int  # lowest weight version that wrote one of its tokens
    weight_version_max: int


class Reason(StrEnum):
    """Why a text holds no verdict."""

    NONE = "none"  # no answer tag
    CONFLICTING = "conflicting"  # both letters are given as the answer
    TRUNCATED = "truncated"  # cut off before the answer


@dataclass(frozen=True, slots=True)
class Verdict:
    letter: Letter | None
    reason: Reason | None = None  # set exactly when letter is None


@dataclass(frozen=True, slots=True)
class Quote:
    letter: Letter  # the answer it claims to be taken from
    text: str


@dataclass(frozen=True, slots=True)
class Trace:
    """The parts of a judge's text; parts that are absent are empty."""

    verdict: Verdict
    kind: Literal["chat", "reasoning", "thought", ""] = ""
    rubric: str = ""  # with the justification taken out
    justify: str = ""
    solution: str = ""
    evaluation: str = ""
    thought: str = ""  # chain of thought ended by </think>
    quotes: tuple[Quote, ...] = field(default=())
    summaries: tuple[Quote, ...] = field(default=())
    outline: tuple[str, ...] = field(default=())  # the closed sections and answers, in order


@dataclass(frozen=True, slots=True, eq=False)
class Judgment:
    """A rollout with what the parser made of it."""

    presentation: Presentation
    rollout: Rollout
    trace: Trace

    @property
    def is_correct(self) -> bool:
        return self.trace.verdict.letter == self.presentation.gold
