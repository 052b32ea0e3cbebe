"""The samples of one presentation with what each of them is worth."""

from __future__ import annotations

from dataclasses import dataclass

from judging.records import Judgment
from rewards.protocol import RewardResult


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    uid: str
    judgments: tuple[Judgment, ...]
    results: tuple[RewardResult, ...]  # one for each judgment, in the same order

    def __post_init__(self) -> None:
        if len(self.judgments) != len(self.results):
            raise ValueError(
                f"group {self.uid} has {len(self.judgments)} judgments but"
                f" {len(self.results)} results"
            )

    @property
    def scores(self) -> list[float | None]:
        """One for each judgment; None where the reward failed, which is never a number."""
        return [result.score if result.status == "ok" else None for result in self.results]


def has_samples(group: Group, minimum: int) -> bool:
    """Whether at least `minimum` of the group's samples have a score."""
    return sum(score is not None for score in group.scores) >= minimum
