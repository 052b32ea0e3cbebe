"""`GET /health` on loopback: whether the run gets on, for whoever watches over its driver.

It is answered from a thread, so that it also tells of an event loop that hangs. A run gets on as
long as it gives a sign (a part of a step that begins or ends, a line on the console) within what
its own deadlines allow between two of them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from actors.placement import LOOPBACK
from actors.urls import on_disk
from judging.errors import ConfigurationError
from orchestrator.config import RunConfig
from orchestrator.vitals import Vital, Vitals

PATH = "/health"
_REQUEST_S = 5.0  # for a client to say what it asks
_POLL_S = 0.05  # how soon it ends when it is told to


@contextmanager
def health_endpoint(config: RunConfig, vitals: Vitals) -> Iterator[None]:
    """Serves at `output.health_port` while the block lasts; without a port, nothing.

    Raises:
        ConfigurationError: the port cannot be had.
    """
    port = config.output.health_port
    if port is None:
        yield
        return
    try:
        answer = partial(health, config, vitals)
        server = _Server((LOOPBACK, port), partial(_Handler, answer))
    except OSError as error:
        raise ConfigurationError(
            f"output.health_port ({port}) cannot be had on {LOOPBACK}: {error.strerror}: choose "
            "another, or leave it out"
        ) from error
    serving = partial(server.serve_forever, poll_interval=_POLL_S)
    thread = threading.Thread(target=serving, name="health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def health(config: RunConfig, vitals: Vitals) -> tuple[int, dict[str, Any]]:
    """The HTTP status and the answer; times in seconds."""
    now, now_s = vitals.now, vitals.clock()
    silent_s, allowed_s = now_s - vitals.sign_at_s, allowed_silence_s(config, now)
    since_commit_s = None if now.committed_at_s is None else now_s - now.committed_at_s
    answer = {
        "run": vitals.run_id,
        "status": now.status,
        "phase": now.phase or None,
        "step": None if now.total_steps is None else now.step,
        "total_steps": now.total_steps,
        "committed_s_ago": _rounded(since_commit_s),
        "progress_s_ago": _rounded(silent_s),
        "progress_expected_within_s": allowed_s,
    }
    if allowed_s is None or silent_s <= allowed_s:
        return 200, answer
    reason = (
        f"no sign of progress for {silent_s:.0f} s while {now.status} ({now.place}), where the "
        f"run's deadlines allow {allowed_s:.0f} s"
    )
    return 503, {**answer, "reason": reason}


def allowed_silence_s(config: RunConfig, now: Vital) -> float | None:
    """The longest time without a sign that the deadlines allow; None: there is none.

    It is what the longest chain of waits takes that gives no sign between them, and a store that is
    waited for besides. Data is read and models are fetched without a deadline.
    """
    deadlines, patience_s = config.deadlines, config.store.patience_s
    start_s = deadlines.start_s
    copying_s = 0.0 if on_disk(config.run.dir) else deadlines.checkpoint_s
    match now.status:
        case "preparing":
            return None
        case "starting":  # a meeting place, the learners in it, and rewards before them
            return 3 * start_s + patience_s
        case "ending":
            return deadlines.stop_s + patience_s + copying_s
        case "running":
            return (
                patience_s
                + copying_s
                + max(
                    2 * start_s + deadlines.checkpoint_s,  # learners are brought to a checkpoint
                    start_s + deadlines.generate_s + deadlines.publish_s,  # drained, met, published
                    deadlines.train_s * _mini_batches(config),
                    deadlines.score_s,
                )
            )


def _mini_batches(config: RunConfig) -> int:
    """The most optimizer steps that are one call."""
    counts = [
        -(-phase.settings.prompts_per_step // phase.settings.mini_batch_prompts)
        for phase in config.phases
        if phase.kind == "reinforce"
    ]
    return max(counts, default=1)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no matter for the run's console."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _REQUEST_S
    server_version, sys_version = "gavel", ""

    def __init__(self, answer: Callable[[], tuple[int, dict[str, Any]]], *connection: Any) -> None:
        self._answer = answer
        super().__init__(*connection)  # which answers at once

    def do_GET(self) -> None:
        is_known = self.path.partition("?")[0] == PATH
        status, answer = self._answer() if is_known else (404, {"reason": f"see {PATH}"})
        body = json.dumps(answer).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Probes are not logged."""
