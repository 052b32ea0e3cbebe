"""One engine of the rollout fleet, and what it takes to ask and to end its actor."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from actors.health import EngineHealth, Health
from judging.errors import InfrastructureError


@dataclass(slots=True, eq=False)
class Engine:
    """One place of the fleet, whichever actor fills it."""

    number: int
    health: EngineHealth
    actor: Any = None
    requests: int = 0  # in flight
    samples: int = 0  # in flight
    comes_back: bool = False  # whether it is being brought back

    @property
    def is_up(self) -> bool:
        """Whether weights can be sent to it."""
        return self.health.state in (Health.HEALTHY, Health.SUSPECT, Health.STALE)

    @property
    def is_out(self) -> bool:
        """Whether it will not come back."""
        return self.health.state is Health.DEAD and not self.health.may_restart


# Of each engine its answer or its error.
Answers = dict[Engine, Any]


async def call(engine: Engine, method: str, arguments: Sequence[Any], *, timeout_s: float) -> Any:
    """The answer of the engine's actor, or the error."""
    from ray.exceptions import RayError

    if engine.actor is None:
        return InfrastructureError(f"rollout worker {engine.number} is being started again")
    try:
        return await asyncio.wait_for(getattr(engine.actor, method).remote(*arguments), timeout_s)
    except (RayError, TimeoutError) as error:
        return error


def kill(actor: Any) -> None:
    import ray

    if actor is not None:
        with suppress(ValueError):  # it is gone already
            ray.kill(actor)
