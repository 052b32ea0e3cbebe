"""Learning-rate schedules as a function of the step."""

from __future__ import annotations

import math

from learning.settings import OptimizerSettings


def learning_rate(step: int, total_steps: int, settings: OptimizerSettings) -> float:
    """The rate of optimizer step `step` (from 0) of a phase with `total_steps` of them.

    Warm-up rises linearly to the peak; then constant, or linear or cosine decay to
    `min_lr_ratio` of the peak at the last step.
    """
    peak = settings.learning_rate
    warmup_steps = math.ceil(settings.warmup_ratio * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if settings.schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
    shape = (
        1 - progress if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    )
    return peak * (settings.min_lr_ratio + (1 - settings.min_lr_ratio) * shape)
