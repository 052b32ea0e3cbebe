"""The kinds of phases that a run is made of."""

from __future__ import annotations

from typing import Literal

PhaseKind = Literal["synthesize", "distill", "reinforce", "evaluate"]
TRAINING: tuple[PhaseKind, ...] = ("distill", "reinforce")  # they change the weights
