"""A run as a job of a Ray cluster: submitted, followed, asked to end.

A run's job has an id made from the run's, so that a run is submitted once at a time; the job of one
that has ended makes room for the one that resumes it. What the job needs travels with it: code and
configuration in the working directory, settings in the entry point, nothing of the submitter's
shell. Passwords and tokens do not: Ray shows a job's environment to all who may read it.
"""

from __future__ import annotations

import asyncio
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judging.errors import ConfigurationError, InfrastructureError
from orchestrator.config import RunConfig

ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
STOPPED_STATUS = 130  # of a job that was stopped: Ray does not say with what status it exited
STOP_MARGIN_S = 10.0  # from the driver's own end to the cluster's SIGKILL
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """What is submitted."""

    id: str
    entrypoint: str
    runtime_env: Mapping[str, Any]
    metadata: Mapping[str, str]


def job_id(run_id: str) -> str:
    """Of the run's job; Ray calls it the submission id."""
    return f"gavel-{run_id}"


def make_job(config: RunConfig, path: Path, overrides: Sequence[str], working_dir: Path) -> Job:
    """The job that runs the configuration in `path`, which has `overrides` and a run id.

    Raises:
        ConfigurationError: `path` is not in the working directory, or the run's directory would
            be lost with the job's copy of it.
    """
    run_id = config.run.id
    assert run_id is not None, "the command line names the run"
    if not config.run.dir.is_absolute():
        raise ConfigurationError(
            f"run.dir={config.run.dir} would lie in the job's copy of the working directory and be "
            "lost with it: give a directory that all nodes share, as in run.dir=/shared/runs"
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
        id=job_id(run_id),
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
        """Raises InfrastructureError, which says what is wrong with address, token or version."""
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        self.address = address
        try:
            self._client = JobSubmissionClient(address)
        except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
            raise InfrastructureError(_unreachable(address, error)) from error

    def submit(self, job: Job) -> None:
        """Raises ConfigurationError if the run's job goes on."""
        status = self.status(job.id)
        if status in ENDED:
            self._client.delete_job(job.id)  # its logs are in the cluster's; the run's are its own
        elif status is not None:
            raise ConfigurationError(
                f"the run's job {job.id} is {status.lower()} at {self.address} already: follow it "
                "by `gavel logs`, or end it by `gavel stop`"
            )
        try:
            self._client.submit_job(
                submission_id=job.id,
                entrypoint=job.entrypoint,
                runtime_env=dict(job.runtime_env),
                metadata=dict(job.metadata),
            )
        except RuntimeError as error:
            raise InfrastructureError(
                f"{self.address} refused the job {job.id}: {error}"
            ) from error

    def status(self, job: str) -> str | None:
        """As Ray names it; None if there is no such job."""
        info = self._info(job)
        return None if info is None else str(info.status.value)

    def follow(self, job: str, show: Callable[[str], object]) -> int:
        """Shows what the job prints until it ends; its exit status.

        Raises:
            ConfigurationError: there is no such job.
            InfrastructureError: the connection to the cluster broke.
        """
        self._require(job)
        try:
            asyncio.run(self._tail(job, show))
        except (RuntimeError, OSError) as error:
            raise InfrastructureError(
                f"lost sight of the job {job}, which may go on: {error}; see `gavel logs`"
            ) from error
        return self.wait(job, timeout_s=60.0)

    async def _tail(self, job: str, show: Callable[[str], object]) -> None:
        async for lines in self._client.tail_job_logs(job):
            show(lines)

    def logs(self, job: str) -> str:
        """What it has printed so far. Raises ConfigurationError if there is no such job."""
        self._require(job)
        return str(self._client.get_job_logs(job))

    def stop(self, job: str, *, timeout_s: float) -> int:
        """Asks the job to end, and waits until it has; its exit status.

        Raises:
            ConfigurationError: there is no such job.
            InfrastructureError: it has not ended within `timeout_s`.
        """
        self._require(job)
        self._client.stop_job(job)
        return self.wait(job, timeout_s=timeout_s)

    def wait(self, job: str, *, timeout_s: float) -> int:
        """Until it has ended; its exit status. Raises InfrastructureError at the deadline."""
        deadline_s = time.monotonic() + timeout_s
        while (info := self._info(job)) is not None and info.status.value not in ENDED:
            if time.monotonic() > deadline_s:
                raise InfrastructureError(
                    f"the job {job} is {info.status.value.lower()} after {timeout_s:.0f} s more"
                )
            time.sleep(_POLL_S)
        if info is None or info.status.value == "STOPPED":
            return STOPPED_STATUS
        if info.status.value == "SUCCEEDED":
            return 0
        return info.driver_exit_code or 1

    def _require(self, job: str) -> None:
        if self._info(job) is None:
            known = [each.submission_id for each in self._client.list_jobs()]
            ours = ", ".join(str(each) for each in known if each) or "none"
            raise ConfigurationError(f"{self.address} has no job {job}; it has {ours}")

    def _info(self, job: str) -> Any:
        try:
            return self._client.get_job_info(job)
        except RuntimeError as error:
            if "404" in str(error) or "does not exist" in str(error):
                return None
            raise InfrastructureError(_unreachable(self.address, error)) from error


def _unreachable(address: str, error: Exception) -> str:
    text = str(error)
    if "401" in text or "403" in text or "oken" in text:
        return (
            f"the Ray cluster at {address} refuses this token: set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's"
        )
    return f"no Ray dashboard answers at {address}: {text.splitlines()[0] if text else error!r}"
