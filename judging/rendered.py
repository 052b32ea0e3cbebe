"""From a rendered RM-R1 user message back to its conversation and answers.

RM-R1 publishes its training sets as rendered prompts. This is the inverse of the `instruct` and
`reasoning` templates' user block: what those render, this reads back. One thing is lost in the
rendering: a line within an earlier turn that begins like another speaker is taken for a turn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from judging.records import Letter, Message

_QUESTION = "[Client Question]\n"
_ANSWER_START = "[The Start of Chatbot {}'s Response]\n"
_ANSWER_END = "\n[The End of Chatbot {}'s Response]"
_CONVERSATION_START = "[The Start of the Conversation between Chatbot {} and the Client]\n"
_CONVERSATION_END = "\n[The End of the Conversation between Chatbot {} and the Client]"

# "Chabot B" is how the script behind the published sets spells some of the speakers.
_SPEAKER = re.compile(r"^(System|User|Cha(?:t)?bot [AB]): ", re.MULTILINE)

_Role = Literal["system", "user", "assistant"]
_ROLES: dict[str, _Role] = {"System": "system", "User": "user"}


class RenderedPromptError(ValueError):
    """A text that is no rendered prompt of RM-R1, or not clearly so; says which header is amiss."""


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    conversation: tuple[Message, ...]
    answer_a: str
    answer_b: str


def parse_rendered(text: str) -> RenderedPrompt:
    """Read a prompt with one question, or with two whole conversations, by its section headers.

    Raises:
        RenderedPromptError: a header is missing, or the two blocks cannot be told apart.
    """
    if _CONVERSATION_START.format("A") in text and not _is_question_first(text):
        return _parse_conversations(text)
    question, rest = _cut(_after(text, _QUESTION), "\n\n" + _ANSWER_START.format("A"))
    answer_a, answer_b = _blocks(rest, _ANSWER_START, _ANSWER_END)
    return RenderedPrompt((Message("user", question),), answer_a, answer_b)


def _is_question_first(text: str) -> bool:
    """Whether the conversation header is only quoted within a prompt with one question."""
    question = text.find(_QUESTION)
    return 0 <= question < text.find(_CONVERSATION_START.format("A"))


def _parse_conversations(text: str) -> RenderedPrompt:
    block_a, block_b = _blocks(
        _after(text, _CONVERSATION_START.format("A")), _CONVERSATION_START, _CONVERSATION_END
    )
    turns_a, turns_b = _turns(block_a, "A"), _turns(block_b, "B")
    # The answers begin at the last assistant turn that both blocks reach by the same turns; a
    # "User: " within an answer makes more turns, but not the same ones in both blocks.
    start = None
    for index, (turn_a, turn_b) in enumerate(zip(turns_a, turns_b, strict=False)):
        is_answer = turn_a.role == turn_b.role == "assistant"
        if is_answer and index and turns_a[index - 1].role == "user":
            start = index
        if turn_a.message() != turn_b.message():
            break
    if start is None:
        raise RenderedPromptError("the two conversations share no user turn with an answer to it")
    conversation = tuple(turn.message() for turn in turns_a[:start])
    answer_a = block_a[turns_a[start].text_start :]
    answer_b = block_b[turns_b[start].text_start :]
    return RenderedPrompt(conversation, answer_a, answer_b)


@dataclass(frozen=True, slots=True)
class _Turn:
    role: _Role
    text: str
    text_start: int  # within its block

    def message(self) -> Message:
        return Message(self.role, self.text)


def _turns(block: str, letter: Letter) -> list[_Turn]:
    """Speakers take turns, so a label that repeats the last speaker is part of what is said."""
    starts: list[tuple[_Role, re.Match[str]]] = []
    for mark in _SPEAKER.finditer(block):
        role = _ROLES.get(mark[1], "assistant")
        if role == "assistant" and mark[1][-1] != letter:
            continue
        if not starts or starts[-1][0] != role:
            starts.append((role, mark))
    if not starts or starts[0][1].start() != 0:
        raise RenderedPromptError(f"the conversation with Chatbot {letter} begins with no speaker")
    ends = [mark.start() - 1 for _, mark in starts[1:]]
    return [
        _Turn(role, block[mark.end() : end], mark.end())
        for (role, mark), end in zip(starts, [*ends, len(block)], strict=True)
    ]


def _blocks(text: str, start: str, end: str) -> tuple[str, str]:
    """The texts between the headers of A, whose first one is cut off already, and those of B."""
    block_a, rest = _cut(text, f"{end.format('A')}\n\n{start.format('B')}")
    closing = end.format("B")
    if closing not in rest:
        raise RenderedPromptError(f"no header {closing.strip()!r}")
    return block_a, rest.rpartition(closing)[0]


def _after(text: str, header: str) -> str:
    if header not in text:
        raise RenderedPromptError(f"no header {header.strip()!r}")
    return text.partition(header)[2]


def _cut(text: str, header: str) -> tuple[str, str]:
    """The texts before and after a header that must be there once."""
    match text.split(header):
        case [before, after]:
            return before, after
        case [_]:
            raise RenderedPromptError(f"no header {header.strip()!r}")
        case _:
            raise RenderedPromptError(f"the header {header.strip()!r} is there more than once")
