"""The lease of a run: at most one driver may write to its journal.

A driver takes the lease with a new epoch and renews it while it lives. Every write of the journal
names the epoch of its driver, and is refused once a later one was given out: a driver that was cut
off, or stopped for long, can commit nothing more when another one has taken over (a fencing token,
Kleppmann, Designing Data-Intensive Applications, chapter 8).
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from redis import RedisError

from judging.errors import ConfigurationError, GavelError
from orchestrator.store_client import Client

LEASE_S = 10.0  # without a renewal
_RENEWALS = 4  # within that time

# KEYS: lease, run hash. ARGV: who asks, milliseconds, whether at once. Answers the epoch, a new one
# unless the same one asked before and lost the answer; or 0, the holder and the milliseconds that
# the lease still runs.
_ACQUIRE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] and ARGV[3] == '0' then
  return {0, holder, redis.call('PTTL', KEYS[1])}
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local epoch = holder == ARGV[1] and redis.call('HGET', KEYS[2], 'epoch')
return {tonumber(epoch or redis.call('HINCRBY', KEYS[2], 'epoch', 1)), ARGV[1], ARGV[2]}
"""

# KEYS: lease, run hash. ARGV: who asks, milliseconds, epoch. Answers 1 if it still holds the lease,
# which it does too if that ran out and nobody else took it.
_RENEW = """
if redis.call('HGET', KEYS[2], 'epoch') ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class Lease:
    """Life: construct, `hold`; `epoch` is valid within it.

    Who `is_alone`, since no other driver can reach the store, waits for no lease of a dead one.
    """

    def __init__(
        self, client: Client, run_id: str, *, lease_s: float = LEASE_S, is_alone: bool = False
    ) -> None:
        self._run_id, self._lease_s, self._is_alone = run_id, lease_s, is_alone
        self._keys = [client.key(run_id, name) for name in ("lease", "run")]
        self._holder = f"{socket.gethostname()}, process {os.getpid()} ({uuid.uuid4().hex[:8]})"
        # Renewing and giving back must not hold up the driver's end while the store is gone.
        hasty = client.without_patience()
        self._scripts = {
            "acquire": client.register_script(_ACQUIRE),
            "renew": hasty.register_script(_RENEW),
            "release": hasty.register_script(_RELEASE),
        }
        self.epoch = 0

    @contextmanager
    def hold(self, *, wait_s: float, say: Callable[[str], object]) -> Iterator[int]:
        """Takes the lease, waiting for another driver's to run out, and renews it in a thread.

        Raises:
            ConfigurationError: another driver still holds it after `wait_s`.
        """
        self._acquire(wait_s, say)
        done = threading.Event()
        thread = threading.Thread(target=self._keep, args=(done,), name="lease", daemon=True)
        thread.start()
        try:
            yield self.epoch
        finally:
            done.set()
            thread.join(timeout=1.0)
            if not thread.is_alive():  # else the store hangs, and the lease runs out by itself
                with suppress(GavelError, RedisError):
                    self._scripts["release"](keys=self._keys[:1], args=[self._holder])

    def renew(self) -> bool:
        """Whether this driver still may write."""
        arguments = [self._holder, self._milliseconds, self.epoch]
        return self._scripts["renew"](keys=self._keys, args=arguments) == 1

    @property
    def _milliseconds(self) -> int:
        return int(self._lease_s * 1000)

    def _acquire(self, wait_s: float, say: Callable[[str], object]) -> None:
        deadline, told = time.monotonic() + wait_s, False
        while True:
            arguments = [self._holder, self._milliseconds, int(self._is_alone)]
            self.epoch, holder, left_ms = self._scripts["acquire"](keys=self._keys, args=arguments)
            if self.epoch:
                return
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"run {self._run_id!r} is held by another driver ({holder}), also after "
                    f"{wait_s:g} s: stop that one, or choose another run id"
                )
            if not told:
                say(f"waiting for the lease of another driver ({holder}) to run out")
                told = True
            time.sleep(min(max(left_ms, 10) / 1000, 1.0))

    def _keep(self, done: threading.Event) -> None:
        while not done.wait(self._lease_s / _RENEWALS):
            try:
                if not self.renew():
                    return  # the next write says so
            except (GavelError, RedisError):
                continue  # the store does not answer: the driver's own calls meet that too
