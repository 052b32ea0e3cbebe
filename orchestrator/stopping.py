"""Ending a run well when it is asked to: SIGTERM of a scheduler or of `ray job stop`, or Ctrl-C.

The step that goes on is ended and committed and a checkpoint is written, within
`deadlines.grace_s`; what its engines have not finished by half of that is left to the run that
resumes. A second signal ends the run at once, as the first one does while it starts.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from judging.errors import GavelError, Stop

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
IN_ORDER = "stopped in order, between two steps; --resume goes on from there"
WAIT_SHARE = 0.5  # of the time there is: for engines; the rest is for a step and a checkpoint


class AskedToStop(Stop):
    """Raised between two steps, when all is well: what is to be kept can be written down."""


class StopRequest:
    """Whether and by when the run is to end. Lives in the driver's event loop."""

    def __init__(self, grace_s: float, *, say: Callable[[str], object]) -> None:
        self._grace_s, self._say = grace_s, say
        self._signal: signal.Signals | None = None  # the first that came
        self._waited = asyncio.Event()  # long enough, for engines
        self._is_late = False
        self._cutting: asyncio.TimerHandle | None = None
        self._error: GavelError | None = None
        self.has_begun = False  # the phases: before, there is nothing to end well

    def listen(self, driving: asyncio.Task[Any]) -> None:
        """From now on signals ask for the end of `driving`."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self.ask, number, driving)

    def ask(self, number: signal.Signals, driving: asyncio.Task[Any]) -> None:
        """The first time for an end in order, the second time for one at once."""
        if self._signal is not None or not self.has_begun:
            self._signal = number
            driving.cancel()
            return
        self._signal = number
        self._say(
            f"{number.name}: the run ends after this step, in {self._grace_s:.0f} s at most "
            "(deadlines.grace_s); a second signal ends it at once"
        )
        loop = asyncio.get_running_loop()
        loop.call_later(self._grace_s * WAIT_SHARE, self._waited.set)
        self._cutting = loop.call_later(self._grace_s, self._cut, driving)

    def ended(self) -> None:
        """All that had to be written down is."""
        if self._cutting is not None:
            self._cutting.cancel()

    def _cut(self, driving: asyncio.Task[Any]) -> None:
        self._is_late = True
        driving.cancel()

    async def end_on(self, lost: Awaitable[GavelError], driving: asyncio.Task[Any]) -> None:
        """Ends `driving` at once when there is nothing left to drive."""
        self._error = await lost
        driving.cancel()

    def check(self) -> None:
        """Between two steps. Raises AskedToStop if the run is to end."""
        if self._signal is not None:
            raise self._in_order()

    async def while_waited_for(self, engines: Awaitable[T]) -> T:
        """What the engines bring. Raises AskedToStop if the run is to end before they do."""
        work, waited = asyncio.ensure_future(engines), asyncio.ensure_future(self._waited.wait())
        try:
            await asyncio.wait((work, waited), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise self._in_order()
            return work.result()
        finally:
            work.cancel()
            waited.cancel()

    def at_once(self) -> GavelError:
        """Why `driving` was cancelled."""
        if self._error is not None:
            return self._error
        why = (
            f"not ended within {self._grace_s:.0f} s (deadlines.grace_s): stopped at once"
            if self._is_late
            else "stopped at once"
        )
        return _stop(Stop(f"{why}; what was committed is kept"), self._status())

    def _in_order(self) -> AskedToStop:
        is_asked_for = self._signal is signal.SIGTERM
        return _stop(AskedToStop(IN_ORDER), 0 if is_asked_for else self._status())

    def _status(self) -> int:
        """Of a process that a signal ended, as shells count."""
        return 128 + (self._signal or signal.SIGINT)


S = TypeVar("S", bound=Stop)


def _stop(stop: S, exit_code: int) -> S:
    stop.exit_code = exit_code
    return stop
