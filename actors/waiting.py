"""Waiting for actors: every wait has a deadline and says what it waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from judging.errors import GavelError, InfrastructureError

T = TypeVar("T")


def last_line(error: BaseException) -> str:
    """Ray's errors end with what went wrong, after a traceback."""
    return str(error).strip().splitlines()[-1]


async def within(timeout_s: float, what: str, awaitable: Awaitable[T]) -> T:
    """The awaited value.

    Raises:
        InfrastructureError: it did not come within `timeout_s`, or its actor died or failed; the
            message begins with `what`.
        GavelError: the actor raised one on purpose.
    """
    from ray.exceptions import RayError, RayTaskError

    try:
        return await asyncio.wait_for(awaitable, timeout_s)
    except TimeoutError:
        raise InfrastructureError(f"{what}: no answer within {timeout_s:.0f} s") from None
    except RayTaskError as error:
        if isinstance(error.cause, GavelError):
            raise error.cause from None
        if isinstance(error.cause, OSError) and error.cause.strerror:  # its own line says it all
            raise InfrastructureError(f"{what}: {error.cause}") from error
        brief = f"{type(error.cause).__name__}: {error.cause}"
        raise InfrastructureError(f"{what}: {brief}\n{error}") from error
    except RayError as error:
        raise InfrastructureError(f"{what}: {error}") from error
