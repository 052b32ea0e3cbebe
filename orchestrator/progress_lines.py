"""Reads back the plain lines of `console.Lines`, so that a follower shows what the driver knows."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.console import BEGINS, STAMPED

LABELS = ("kept", "USD", "reward", "accuracy", "loss", "validation", "tokens/s")  # of the headline
_GAP = "  "  # between the parts of a line
_LEFT = " left"


@dataclass(frozen=True, slots=True)
class ProgressLine:
    title: str  # of the phase
    step: int  # 0: the phase begins
    total_steps: int | None  # None: only a target ends it
    headline: str = ""
    left: str = ""


def read_line(line: str) -> ProgressLine | str:
    """The progress that a line tells of; any other line as the run would show it in a terminal."""
    place = STAMPED.fullmatch(line)
    if place is None:
        return line
    text = place["text"]
    total = int(place["steps"]) if place["steps"] else None
    if text == BEGINS:
        return ProgressLine(place["phase"], 0, total)
    parts = text.split(_GAP)
    left = parts.pop() if parts[-1].endswith(_LEFT) else ""
    is_headline = all(part.partition(" ")[0] in LABELS for part in parts)
    if not (place["step"].isdecimal() and is_headline):
        return text
    return ProgressLine(place["phase"], int(place["step"]), total, _GAP.join(parts), left)
