"""Keeps a pod of Ray that is to go until no job runs on its cluster: a preStop hook.

When a RayJob is deleted, KubeRay asks its job to stop and all pods to go, at once. A driver takes
up to deadlines.grace_s to end its step and to write a checkpoint, for which it needs the others.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request

POLL_S = 2.0
ANSWER_TIMEOUT_S = 5.0
TRIES = 3  # without an answer of the head, after which nothing is waited for


def has_running_job(url: str, token: str | None) -> bool:
    """Raises OSError if the head does not answer, and ValueError if what answers is no Ray."""
    request = urllib.request.Request(url)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_S) as answer:
        jobs = json.load(answer)
    return any(job.get("status") in ("PENDING", "RUNNING") for job in jobs)


def wait_for_jobs(url: str, token: str | None, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    failures = 0
    while time.monotonic() < deadline_s and failures < TRIES:
        try:
            if not has_running_job(url, token):
                return
            failures = 0
        except (OSError, ValueError):
            failures += 1
        time.sleep(POLL_S)


if __name__ == "__main__":
    head = os.environ.get("RAY_ADDRESS", "127.0.0.1:6379").rpartition(":")[0]
    dashboard = os.environ.get("GAVEL_DASHBOARD_PORT", "8265")
    jobs_url = f"http://{head}:{dashboard}/api/jobs/"
    wait_for_jobs(jobs_url, os.environ.get("RAY_AUTH_TOKEN"), float(sys.argv[1]))
