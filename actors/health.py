"""Health of one engine as a state machine: no Ray, no waiting, times come as arguments.

| from \\ to | HEALTHY           | SUSPECT         | DEAD           | RESTARTING   | STALE     |
|------------|-------------------|-----------------|----------------|--------------|-----------|
| HEALTHY    | stays             | silent for half | hung, `failed` |              |           |
| SUSPECT    | a sign, `current` | stays           | hung, `failed` |              |           |
| DEAD       |                   |                 | stays          | `restarting` |           |
| RESTARTING |                   |                 | `failed`       | stays        | `started` |
| STALE      | `current`         |                 | hung, `failed` |              | stays     |

There is no way from DEAD or RESTARTING to HEALTHY but through STALE, which only `current` leaves:
an engine that was started again must hold the learners' current weights before it takes work.
"""

from __future__ import annotations

from enum import StrEnum


class Health(StrEnum):
    HEALTHY = "healthy"
    SUSPECT = "suspect"  # slow to make progress: goes on with what it has, is given nothing new
    DEAD = "dead"  # taken out: what it had must be given to others
    RESTARTING = "restarting"  # is being started, for the first time or again
    STALE = "stale"  # started, without the current weights


class EngineHealth:
    """Life: construct (RESTARTING), `started`, `current`, then heartbeats and what befalls it.

    An engine that gives no sign for `hang_s` is hung, one that gives none for half of that is
    suspect. A sign is a counter of iterations that rose, or an answer that nothing is in flight.

    What an engine was asked before it was started again says nothing of it now. Who reports the end
    of a request compares `restarts` with what it was when the request was made.
    """

    def __init__(self, now_s: float, *, hang_s: float, max_restarts: int) -> None:
        self._hang_s, self._max_restarts = hang_s, max_restarts
        self._state = Health.RESTARTING
        self._restarts = 0
        self._reason = ""
        self._progress = 0
        self._sign_s = now_s  # when it last gave a sign, pauses since then not counted
        self._paused_s: float | None = None  # since when it is paused

    @property
    def state(self) -> Health:
        return self._state

    @property
    def takes_work(self) -> bool:
        return self._state is Health.HEALTHY

    @property
    def may_restart(self) -> bool:
        """Whether it is dead and its budget of restarts, one for the whole run, is not spent."""
        return self._state is Health.DEAD and self._restarts < self._max_restarts

    @property
    def restarts(self) -> int:
        return self._restarts

    @property
    def reason(self) -> str:
        """Why it was taken out; empty once it is healthy again."""
        return self._reason

    def observed(self, now_s: float, progress: int, in_flight: int) -> None:
        """It answered a heartbeat: `progress` iterations since its start, `in_flight` requests.

        Heartbeats that come late, when the engine is out, change nothing.
        """
        if not self._is_up():
            return
        if progress < self._progress:
            self.failed(f"its iterations fell from {self._progress} to {progress}")
        elif progress > self._progress or in_flight == 0:
            self._progress, self._sign_s = progress, now_s
            if self._state is Health.SUSPECT:
                self._state = Health.HEALTHY
        elif self._paused_s is None:
            self._age(now_s, f"no progress with {in_flight} requests in flight")

    def unanswered(self, now_s: float) -> None:
        """It did not answer a heartbeat in time."""
        if self._is_up() and self._paused_s is None:
            self._age(now_s, "no answer")

    def failed(self, reason: str) -> None:
        """It died, raised an error or answered garbage; or its start failed."""
        if self._state is not Health.DEAD:  # the first reason stays
            self._state = Health.DEAD
            self._reason = reason

    def paused(self, now_s: float) -> None:
        """A publication of weights begins, which has a deadline of its own: no sign is expected."""
        if self._paused_s is None:
            self._paused_s = now_s

    def excuse(self, now_s: float, blind_s: float) -> None:
        """It was not looked at for so long: that is no silence of its own."""
        if self._paused_s is None:
            self._sign_s = min(now_s, self._sign_s + max(0.0, blind_s))

    def resumed(self, now_s: float) -> None:
        """It is expected to go on; its silence counts from where it stood."""
        if self._paused_s is not None:
            self._sign_s = min(now_s, self._sign_s + now_s - self._paused_s)
            self._paused_s = None

    # ---- the way back: each raises ValueError from a state that it does not lead from ----------

    def restarting(self) -> None:
        """It is being started again, at the cost of one restart."""
        if self._state is Health.DEAD and not self.may_restart:
            budget = f"all {self._max_restarts} restarts are spent"
            raise ValueError(f"from {self._state} to {Health.RESTARTING}: {budget}")
        self._move(Health.RESTARTING, Health.DEAD)
        self._restarts += 1

    def started(self, now_s: float) -> None:
        """Its process is up."""
        self._move(Health.STALE, Health.RESTARTING)
        self._progress, self._sign_s, self._paused_s = 0, now_s, None

    def current(self, now_s: float) -> None:
        """It holds the learners' current weights, and has proven it."""
        self._move(Health.HEALTHY, Health.STALE, Health.SUSPECT, Health.HEALTHY)
        self._reason, self._sign_s = "", now_s

    def _move(self, to: Health, *sources: Health) -> None:
        if self._state not in sources:
            raise ValueError(f"an engine does not go from {self._state} to {to}")
        self._state = to

    def _is_up(self) -> bool:
        return self._state not in (Health.DEAD, Health.RESTARTING)

    def _age(self, now_s: float, what: str) -> None:
        silent_s = now_s - self._sign_s
        if silent_s >= self._hang_s:
            self.failed(f"{what} for {silent_s:.0f} s")
        elif silent_s >= self._hang_s / 2 and self._state is Health.HEALTHY:
            self._state = Health.SUSPECT
