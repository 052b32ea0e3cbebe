"""A run as jobs of a Ray cluster: submitted, followed, asked to end.

A run's jobs are numbered, one for each time that it was submitted, and no two go on at once. What a
job needs travels with it: code and configuration in the working directory, settings in the entry
point, nothing of the submitter's shell. A password does not: Ray shows a job's entry point and
environment to all who may read it.
"""

from __future__ import annotations

import asyncio
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from judging.errors import ConfigurationError, InfrastructureError
from orchestrator.config import RunConfig
from orchestrator.store_client import PASSWORD_VARIABLE, without_password

T = TypeVar("T")

ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
STOPPED_STATUS = 130  # of a job that was stopped: Ray does not say with what status it exited
STOP_MARGIN_S = 10.0  # from the driver's own end to the cluster's SIGKILL
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """What is submitted."""

    run_id: str
    entrypoint: str
    runtime_env: Mapping[str, Any]
    metadata: Mapping[str, str]


def make_job(config: RunConfig, path: Path, overrides: Sequence[str], working_dir: Path) -> Job:
    """The job that runs the configuration in `path`, which has `overrides` and a run id.

    Raises:
        ConfigurationError: `path` is not in the working directory, or the run's directory would
            be lost with the job's copy of it, or a password would be seen.
    """
    run_id = config.run.id
    assert run_id is not None, "the command line names the run"
    if not config.run.dir.is_absolute():
        raise ConfigurationError(
            f"run.dir={config.run.dir} would lie in the job's copy of the working directory and be "
            "lost with it: give a directory that all nodes share, as in run.dir=/shared/runs"
        )
    if config.store.url is not None and without_password(config.store.url) != config.store.url:
        raise ConfigurationError(
            "store.url holds a password, which Ray would show with the job: leave it out, and set "
            f"{PASSWORD_VARIABLE} where the driver runs"
        )
    root = working_dir.resolve()
    if not path.resolve().is_relative_to(root):
        raise ConfigurationError(
            f"{path} does not travel with the working directory {root}: move it there, or submit "
            "from a directory that holds it (--working-dir)"
        )
    inside = path.resolve().relative_to(root).as_posix()
    own = [text for text in overrides if not text.startswith("run.id=")]
    command = ["python", "-m", "orchestrator", "run", inside, *own, f"run.id={run_id}"]
    wait_s = math.ceil(config.deadlines.grace_s + config.deadlines.stop_s + STOP_MARGIN_S)
    return Job(
        run_id=run_id,
        entrypoint=shlex.join(command),
        runtime_env={
            "working_dir": str(root),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(wait_s)},
        },
        metadata={"gavel_run": run_id, "gavel_run_dir": str(config.run.dir)},
    )


class Jobs:
    """The jobs of one cluster, by its dashboard's address."""

    def __init__(self, address: str) -> None:
        """Raises InfrastructureError, which says what is wrong with address or token."""
        from ray.job_submission import JobSubmissionClient

        self.address = address
        self._client: Any = self._asked(lambda: JobSubmissionClient(address))

    def submit(self, job: Job) -> str:
        """The id of what is submitted. Raises ConfigurationError if a job of the run goes on."""
        earlier = self._of_run(job.run_id)
        for each in earlier:
            if each.status.value not in ENDED:
                raise ConfigurationError(
                    f"the run's job {each.submission_id} is {each.status.value.lower()} at "
                    f"{self.address} already: follow it by `gavel logs`, or end it by `gavel stop`"
                )
        job_id = f"gavel-{job.run_id}-{len(earlier) + 1}"
        self._asked(
            lambda: self._client.submit_job(
                submission_id=job_id,  # refused if somebody else submitted it meanwhile
                entrypoint=job.entrypoint,
                runtime_env=dict(job.runtime_env),
                metadata=dict(job.metadata),
            )
        )
        return job_id

    def newest(self, run_id: str) -> str:
        """The id of a run's newest job. Raises ConfigurationError if it has none."""
        if jobs := self._of_run(run_id):
            return str(jobs[-1].submission_id)
        known = {job.metadata["gavel_run"] for job in self._all() if _is_ours(job)}
        runs = ", ".join(sorted(known)) or "none"
        raise ConfigurationError(f"{self.address} has no job of a run {run_id}; it has had {runs}")

    def follow(self, job_id: str, show: Callable[[str], object]) -> int:
        """Shows what the job prints until it ends; its exit status.

        Raises:
            InfrastructureError: the cluster does not answer any more.
        """
        shown = 0
        while True:
            shown = asyncio.run(self._tail(job_id, show, shown))
            status = self._status(job_id)
            if status is not None:
                return status
            time.sleep(_POLL_S)  # the stream broke: on from where it was

    async def _tail(self, job_id: str, show: Callable[[str], object], shown: int) -> int:
        """Shows what comes after the first `shown` characters; how many there are then."""
        from aiohttp import ClientError

        seen = 0
        try:
            async for text in self._client.tail_job_logs(job_id):
                if new := text[max(0, shown - seen) :]:
                    show(new)
                seen += len(text)
        except (ClientError, RuntimeError, OSError):
            pass  # whether the job goes on is asked next
        return max(seen, shown)

    def logs(self, job_id: str) -> str:
        """What it has printed so far."""
        return str(self._asked(lambda: self._client.get_job_logs(job_id)))

    def stop(self, job_id: str, *, timeout_s: float) -> None:
        """Asks the job to end; returns when it has. Raises InfrastructureError at the deadline."""
        self._asked(lambda: self._client.stop_job(job_id))
        deadline_s = time.monotonic() + timeout_s
        while self._status(job_id) is None:
            if time.monotonic() > deadline_s:
                raise InfrastructureError(
                    f"the job {job_id} was asked to end, and has not after {timeout_s:.0f} s"
                )
            time.sleep(_POLL_S)

    def _status(self, job_id: str) -> int | None:
        """The exit status; None as long as it goes on."""
        info = self._asked(lambda: self._client.get_job_info(job_id))
        match info.status.value:
            case "SUCCEEDED":
                return 0
            case "STOPPED":
                return STOPPED_STATUS
            case "FAILED":
                return info.driver_exit_code or 1
            case _:
                return None

    def _of_run(self, run_id: str) -> list[Any]:
        """Oldest first."""
        jobs = [j for j in self._all() if _is_ours(j) and j.metadata["gavel_run"] == run_id]
        return sorted(jobs, key=lambda job: int(job.submission_id.rpartition("-")[2]))

    def _all(self) -> list[Any]:
        return list(self._asked(lambda: self._client.list_jobs()))

    def _asked(self, call: Callable[[], T]) -> T:
        """What the cluster answers. Raises InfrastructureError, which names it."""
        from ray.exceptions import RayError

        try:
            return call()
        except (RayError, RuntimeError, OSError, ValueError) as error:
            raise InfrastructureError(_unreachable(self.address, error)) from error


def _is_ours(job: Any) -> bool:
    return "gavel_run" in (job.metadata or {})


def _unreachable(address: str, error: Exception) -> str:
    text = str(error)
    if "401" in text or "403" in text or "oken" in text:
        return (
            f"the Ray cluster at {address} refuses this token: set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's"
        )
    reason = text.splitlines()[0] if text else repr(error)
    return f"the Ray dashboard at {address} does not do it: {reason}"
