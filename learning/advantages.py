"""Group-relative advantages."""

from __future__ import annotations

import math
from collections.abc import Sequence

ZERO_VARIANCE = 1e-6  # a spread of scores below this teaches nothing


def group_advantages(
    scores: Sequence[float | None], *, normalize_std: bool = True
) -> list[float | None]:
    """Each sample's score relative to its group (DeepSeekMath, arXiv 2402.03300, section 4.1.2).

    Args:
        scores: one a sample; None where a reward failed. Such a sample has no advantage and no
            part in the group's baseline.
        normalize_std: divide by the group's standard deviation; False is Dr. GRPO (2503.20783).

    Returns:
        One advantage a sample, None where the score is None; all zero where the scores agree.
    """
    known = [score for score in scores if score is not None]
    if not known:
        return [None] * len(scores)
    mean = math.fsum(known) / len(known)
    spread = standard_deviation(known)
    if spread < ZERO_VARIANCE:
        return [None if score is None else 0.0 for score in scores]
    scale = spread if normalize_std else 1.0
    return [None if score is None else (score - mean) / scale for score in scores]


def has_zero_variance(scores: Sequence[float | None]) -> bool:
    """Whether a group teaches nothing: fewer than two scores, or all alike."""
    known = [score for score in scores if score is not None]
    return len(known) < 2 or standard_deviation(known) < ZERO_VARIANCE


def standard_deviation(values: Sequence[float]) -> float:
    """The sample standard deviation (n - 1, as torch's default); 0 for a single value."""
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
