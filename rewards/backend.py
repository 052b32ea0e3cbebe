"""How the host reaches a reward, whatever form it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from rewards.protocol import RewardRequest, RewardSpec

# transient: the same call may succeed later. fault: the reward raised or answered nonsense.
# timeout: no answer in time. died: the reward's process is gone.
START_TIMEOUT_S = 30.0  # for what a call must start first, beyond the call's own time

FailureKind = Literal["transient", "fault", "timeout", "died"]


class CallFailed(Exception):
    """A call without a full answer; `partial` holds what was answered before."""

    def __init__(self, kind: FailureKind, message: str, partial: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.partial = list(partial)


class Backend(Protocol):
    """One reward behind its transport. Calls come one at a time for each of `lanes`."""

    @property
    def lanes(self) -> int:
        """Calls that may be under way at once."""
        ...

    async def open(self, timeout_s: float) -> RewardSpec:
        """Reaches the reward.

        Raises:
            CallFailed: it is not there, or answers no valid spec.
        """
        ...

    async def score(
        self, lane: int, batch: Sequence[RewardRequest], timeout_s: float
    ) -> Sequence[Any]:
        """What the reward answered, unchecked. Whatever hangs is ended at `timeout_s`.

        Raises:
            CallFailed: no full answer.
        """
        ...

    async def close(self) -> None: ...
