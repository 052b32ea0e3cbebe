"""What the batch interfaces of the services have in common."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from judging.errors import ConfigurationError, InfrastructureError
from synthesis.endpoint import OVERLOADED, PASSING, refuse_status, retry_after_s
from synthesis.records import Answer, TeacherRequest

_SHOWN_CHARS = 300


class ServiceError(Exception):
    """The service refused something, or cannot be reached; `status` is then None."""

    def __init__(self, status: int | None, text: str, retry_after_s: float | None = None) -> None:
        shown = text[:_SHOWN_CHARS]
        super().__init__(shown if status is None else f"status {status}: {shown}")
        self.status, self.text, self.retry_after_s = status, text, retry_after_s

    @property
    def is_passing(self) -> bool:
        """It may be otherwise the next time."""
        status = self.status
        return status is None or status in OVERLOADED + PASSING or status >= 500


class NoRoom(Exception):
    """The service did not take a batch, as it has taken all that it takes at a time."""


class Invalid(Exception):
    """The service found faults in a batch, and answered none of it.

    `faults` are the number of a line, from 1, or None for the whole, and what is wrong there.
    """

    def __init__(self, faults: Sequence[tuple[int | None, str]]) -> None:
        super().__init__("; ".join(text for _, text in faults[:3]))
        self.faults = faults


class BatchClient(Protocol):
    """One service. All that is awaited raises ServiceError."""

    where: str
    most_requests: int  # in one batch
    has_marks: bool  # `find` knows for sure

    async def models(self) -> list[str]:
        """The names that it knows, the teacher's own among them if it does."""
        ...

    async def submit(self, mark: str, requests: Sequence[TeacherRequest]) -> str:
        """The id of the batch that answers these."""
        ...

    async def find(self, mark: str, at_s: float, requests: int) -> list[str]:
        """The ids of the batches that may have been submitted with this mark, at this time (Unix)
        and with so many requests."""
        ...

    async def results(self, batch_id: str) -> Mapping[str, str] | None:
        """What `read` reads, by the request's key; None as long as it is processed.

        Raises:
            NoRoom, Invalid: nothing of it was or will be answered.
        """
        ...

    def read(self, result: str, request: TeacherRequest) -> Answer:
        """Raises ServiceError for a request that was refused, or TryFailed."""
        ...

    async def cancel(self, batch_id: str) -> None: ...

    async def close(self) -> None: ...


@contextmanager
def told(*errors: type[Exception]) -> Iterator[None]:
    """What the services' own clients raise, as ServiceError: the two are alike."""
    try:
        yield
    except (*errors, json.JSONDecodeError) as error:
        response = getattr(error, "response", None)
        if response is None:
            why = f"the connection failed: {error.__cause__ or error}"
            raise ServiceError(None, why) from error
        pause_s = retry_after_s(response.headers, time.time())
        raise ServiceError(response.status_code, str(error), pause_s) from error


async def by_key(lines: bytes) -> dict[str, str]:
    """JSON lines by their `custom_id`."""

    def read() -> dict[str, str]:
        found = [line.decode() for line in lines.split(b"\n") if line.strip()]
        return {json.loads(line).get("custom_id", ""): line for line in found}

    return await asyncio.to_thread(read)  # there may be 100 MB


def refuse(name: str, where: str, key_variable: str | None, error: ServiceError) -> None:
    """Raises ConfigurationError or InfrastructureError for what no further request will mend."""
    if error.status == 402 or "insufficient_quota" in error.text:
        raise InfrastructureError(
            f"synthesize.teachers.{name}: {where} wants to be paid ({error}): what was answered "
            "is kept; mend this, and go on with --resume"
        ) from error
    if error.status is not None:
        refuse_status(name, where, error.status, error.text, key_variable)


def refuse_batch(name: str, where: str, key_variable: str | None, error: ServiceError) -> None:
    """As `refuse`, of what was asked about a whole batch."""
    refuse(name, where, key_variable, error)
    if not error.is_passing:
        raise batch_refused(name, where, error) from error


def batch_refused(name: str, where: str, error: ServiceError) -> ConfigurationError:
    smaller = ": make batch_requests smaller" if error.status == 413 else ""
    return ConfigurationError(
        f"synthesize.teachers.{name}: {where} does not take a batch: {error}{smaller}"
    )
