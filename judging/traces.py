"""The trace grammar and its one parser.

Owns the reading of a judge's text: the tags (type, rubric, justify, solution, eval, quotes and
summaries, answer, think) and the verdict. Distillation's filter, the verifier, evaluation and
serving all read traces here. It does not know which answer is right.

The parser never raises on text and takes time linear in its length (times the logarithm of the
number of tags): no expression backtracks over more than one run of white space.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Literal, NamedTuple, cast

from judging.records import Letter, Quote, Reason, Trace, Verdict

STRICT_TAIL_CHARS = 80  # how much of the end RM-R1's training reward looks at

_PARTS = frozenset({"type", "rubric", "solution", "eval"})
_BOUNDS = _PARTS | {"answer"}  # where a section ends that lacks its closing tag
_JUSTIFY = frozenset({"justify"})
_QUOTES = frozenset({"quote_a", "quote_b"})
_SUMMARIES = frozenset({"summary_a", "summary_b"})
_QUOTED = _QUOTES | _SUMMARIES
_ALL = _PARTS | _JUSTIFY | _QUOTED

_TAG = re.compile(
    r"<\s*+(/?+)\s*+"
    r"(think|type|rubric|justify|solution|eval|quote_[ab]|summary_[ab]|answer)\s*+>",
    re.IGNORECASE,
)
_THINK_TAG = re.compile(r"<\s*+/?+\s*+think\s*+>", re.IGNORECASE)
_SPACE = re.compile(r"\s*+")
_MARKER = re.compile(r"\[\s*+\[\s*+([AB])\s*+\]\s*+\]", re.IGNORECASE)
# A bare marker must be spelled exactly: outside an answer tag, [[a]] may be a list or a link.
_BARE_MARKER = re.compile(r"\[\[([AB])\]\]")


class _Tag(NamedTuple):
    name: str
    is_closing: bool
    start: int
    end: int


class _Section(NamedTuple):
    name: str
    start: int  # with its tags
    body_start: int
    body_end: int
    end: int
    is_closed: bool


class _Answer(NamedTuple):
    start: int
    end: int
    letters: frozenset[Letter]


def parse_trace(text: str, *, strict_tail: bool = False, truncated: bool = False) -> Trace:
    """Read a judge's text; one without a clear verdict gives a verdict whose letter is None.

    An answer tag counts when it stands after the chain of thought and outside every section.
    Without one, an answer within a part or thought, and at last a bare [[A]] or [[B]], counts if
    it is the text's last word and the text was not cut off. What a quote or summary tag encloses
    never counts. Two letters in the same standing are CONFLICTING. `Trace.kind` is what the type
    tag says, else what the parts show.

    Args:
        text: the completion, without special tokens.
        strict_tail: take the verdict by RM-R1's training rule instead: the literal answer tag of
            one letter, and not that of the other, in the last 80 characters.
        truncated: the text was cut off by the token limit; without an answer it is TRUNCATED.
    """
    tags = _tags(text)
    answers = _answers(text, tags)
    thought_end = _thought_end(tags, answers)
    tags_after = _Tags([tag for tag in tags if tag.start >= thought_end], len(text))
    if strict_tail:
        verdict = _decide(_strict_tail_letters(text), truncated)
    else:
        if truncated:
            answers = _outside_open_thought(tags, answers)
        letters = _letters(text, tags_after, answers, thought_end, truncated)
        verdict = _decide(letters, truncated)
    return _trace(text, tags_after, thought_end, verdict)


def without_quotations(text: str) -> str:
    """A judge's text, thought and all, with a blank for each quote and summary of an answer."""
    tags = _tags(text)
    kept, position = [], 0
    for section in _Tags(tags, len(text)).sections(_QUOTED):
        if section.is_closed:
            kept.append(text[position : section.start])
            position = section.end
    return " ".join((*kept, text[position:]))


def _tags(text: str) -> list[_Tag]:
    return [
        _Tag(match[2].lower(), bool(match[1]), match.start(), match.end())
        for match in _TAG.finditer(text)
    ]


def _answers(text: str, tags: Sequence[_Tag]) -> list[_Answer]:
    """Every answer tag that names a letter; an unclosed one must be followed by it at once."""
    answer_tags = [tag for tag in tags if tag.name == "answer"]
    answers = []
    for tag, following in zip_longest(answer_tags, answer_tags[1:]):
        if tag.is_closing:
            continue
        if following is not None and following.is_closing:
            found = _MARKER.findall(text, tag.end, following.start)
            end = following.end
        else:
            match = _MARKER.match(text, _end_of_space(text, tag.end))
            found = [match[1]] if match else []
            end = match.end() if match else tag.end
        if found:
            answers.append(_Answer(tag.start, end, _as_letters(found)))
    return answers


def _end_of_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _as_letters(found: Iterable[str]) -> frozenset[Letter]:
    return frozenset(cast(Letter, letter.upper()) for letter in found)


def _thought_end(tags: Sequence[_Tag], answers: Sequence[_Answer]) -> int:
    """Where the chain of thought ends; 0 without one.

    The last </think> before the last answer ends it: an answer before that was a thought, and a
    </think> after every answer is a closing tag written once more.
    """
    ends = [tag.end for tag in tags if tag.name == "think" and tag.is_closing]
    if answers:
        ends = [end for end in ends if end <= answers[-1].start] or ends
    return ends[-1] if ends else 0


def _outside_open_thought(tags: Sequence[_Tag], answers: list[_Answer]) -> list[_Answer]:
    """The answers of a text that was cut off, without those of the thought it was cut off in."""
    thinks = [tag for tag in tags if tag.name == "think"]
    if not thinks or thinks[-1].is_closing:
        return answers
    return [answer for answer in answers if answer.start < thinks[-1].start]


def _letters(
    text: str,
    tags_after: _Tags,
    answers: Sequence[_Answer],
    thought_end: int,
    truncated: bool,
) -> frozenset[Letter]:
    """The letters that the text gives as its answer."""
    quoted = _hiding(tags_after.sections(_QUOTED), text, truncated)
    answers = [answer for answer in answers if not _is_inside(answer.start, quoted)]
    after = [answer for answer in answers if answer.start >= thought_end]
    sections = _hiding(tags_after.sections(_ALL), text, truncated)
    outside = [answer for answer in after if not _is_inside(answer.start, sections)]
    if outside or truncated:
        return _union(outside)
    last_resort = after or answers or _bare_answers(text, thought_end, sections)
    return _union(last_resort) if _is_last_word(text, last_resort) else frozenset()


def _hiding(sections: list[_Section], text: str, truncated: bool) -> list[_Section]:
    """The sections that hide an answer: closed ones, and the one that a text was cut off in."""
    hiding = [section for section in sections if section.is_closed]
    if truncated and sections and not sections[-1].is_closed:
        hiding.append(sections[-1]._replace(body_end=len(text)))
    return hiding


def _bare_answers(text: str, thought_end: int, sections: Sequence[_Section]) -> list[_Answer]:
    return [
        _Answer(match.start(), match.end(), _as_letters(match[1]))
        for match in _BARE_MARKER.finditer(text, thought_end)
        if not _is_inside(match.start(), sections)
    ]


def _is_last_word(text: str, answers: Sequence[_Answer]) -> bool:
    return bool(answers) and not _TAG.sub("", text[answers[-1].end :]).strip(" \t\r\n.*")


def _union(answers: Iterable[_Answer]) -> frozenset[Letter]:
    return frozenset[Letter]().union(*(answer.letters for answer in answers))


def _strict_tail_letters(text: str) -> frozenset[Letter]:
    tail = text[-STRICT_TAIL_CHARS:]
    return _as_letters(letter for letter in ("A", "B") if f"<answer>[[{letter}]]</answer>" in tail)


def _decide(letters: frozenset[Letter], truncated: bool) -> Verdict:
    if len(letters) == 1:
        return Verdict(next(iter(letters)))
    if letters:
        return Verdict(None, Reason.CONFLICTING)
    return Verdict(None, Reason.TRUNCATED if truncated else Reason.NONE)


class _Tags:
    """The tags of a text, read as sections: each from an opening tag to where it ends.

    A section reaches to the next closing tag of its name; without one, to the next part or answer.
    """

    def __init__(self, tags: Sequence[_Tag], text_end: int) -> None:
        closings: dict[str, list[_Tag]] = {}
        for tag in tags:
            if tag.is_closing:
                closings.setdefault(tag.name, []).append(tag)
        starts = {name: [tag.start for tag in same] for name, same in closings.items()}
        opening = [tag for tag in tags if not tag.is_closing]
        bounds = [tag.start for tag in opening if tag.name in _BOUNDS]
        self._sections: list[_Section] = []
        for tag in opening:
            index = bisect_left(starts.get(tag.name, ()), tag.end)
            if is_closed := index < len(starts.get(tag.name, ())):
                closing = closings[tag.name][index]
                body_end, end = closing.start, closing.end
            else:
                bound = bisect_left(bounds, tag.end)
                body_end = end = bounds[bound] if bound < len(bounds) else text_end
            section = _Section(tag.name, tag.start, tag.end, body_end, end, is_closed)
            self._sections.append(section)

    def sections(self, names: frozenset[str]) -> list[_Section]:
        """The sections called `names`, in order, none within another."""
        found: list[_Section] = []
        position = 0
        for section in self._sections:
            if section.name in names and section.start >= position:
                found.append(section)
                position = section.end
        return found


def _is_inside(position: int, sections: Sequence[_Section]) -> bool:
    index = bisect_right(sections, position, key=lambda section: section.start) - 1
    return index >= 0 and position < sections[index].body_end


def _trace(text: str, tags_after: _Tags, thought_end: int, verdict: Verdict) -> Trace:
    parts = tags_after.sections(_PARTS)
    justify = [s for s in tags_after.sections(_JUSTIFY) if s.is_closed]
    types = _bodies(text, parts, "type")
    rubric = _join(_without(text, s, justify).strip() for s in parts if s.name == "rubric")
    solution = _join(_bodies(text, parts, "solution"))
    thought = _THINK_TAG.sub("", text[:thought_end]).strip()
    return Trace(
        verdict=verdict,
        kind=_kind(types[0] if types else "", rubric, solution, thought),
        rubric=rubric,
        justify=_join(_bodies(text, justify, "justify")),
        solution=solution,
        evaluation=_join(_bodies(text, parts, "eval")),
        thought=thought,
        quotes=_quotes(text, tags_after.sections(_QUOTES)),
        summaries=_quotes(text, tags_after.sections(_SUMMARIES)),
        outline=tuple(
            section.name for section in tags_after.sections(_BOUNDS) if section.is_closed
        ),
    )


def _bodies(text: str, sections: Iterable[_Section], name: str) -> list[str]:
    return [text[s.body_start : s.body_end].strip() for s in sections if s.name == name]


def _join(bodies: Iterable[str]) -> str:
    return "\n".join(body for body in bodies if body)


def _without(text: str, section: _Section, inner: Sequence[_Section]) -> str:
    """The section's body without the inner sections that it holds, tags and all."""
    kept, position = [], section.body_start
    index = bisect_left(inner, section.body_start, key=lambda part: part.start)
    while index < len(inner) and inner[index].end <= section.body_end:
        kept.append(text[position : inner[index].start])
        position = inner[index].end
        index += 1
    kept.append(text[position : section.body_end])
    return "".join(kept)


def _kind(
    declared: str, rubric: str, solution: str, thought: str
) -> Literal["chat", "reasoning", "thought", ""]:
    match declared.lower():
        case "chat":
            return "chat"
        case "reasoning":
            return "reasoning"
    if rubric:
        return "chat"
    if solution:
        return "reasoning"
    return "thought" if thought else ""


def _quotes(text: str, sections: Iterable[_Section]) -> tuple[Quote, ...]:
    return tuple(
        Quote("A" if section.name.endswith("a") else "B", body)
        for section in sections
        if section.is_closed and (body := text[section.body_start : section.body_end].strip())
    )
