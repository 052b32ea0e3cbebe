"""What makes a judgment complete: its sections, their order, and the weights of its rubric.

After RM-R1's grammar (arXiv 2505.02387, figures 2, 3 and 6). The built-in reward `format` and the
verification of traces read it here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from judging.records import Trace

_ORDER: Mapping[str, tuple[str, ...]] = {
    "chat": ("rubric", "eval", "answer"),
    "reasoning": ("solution", "eval", "answer"),
    "thought": ("answer",),
}
_PERCENTAGE = re.compile(r"(?<!\d)(\d++(?:\.\d++)?+)\s*+%")
_WHOLE = 100.0
_TOLERANCE = 0.5  # percent; weights are rounded


def is_in_order(trace: Trace) -> bool:
    """Whether the sections of the judgment's kind stand closed, once, and in order."""
    return tuple(name for name in trace.outline if name != "type") == _ORDER.get(trace.kind)


def weighs_whole(rubric: str) -> bool:
    """Whether the weights of a rubric's criteria sum to 100 %."""
    total = sum(float(number) for number in _PERCENTAGE.findall(rubric))
    return abs(total - _WHOLE) <= _TOLERANCE
