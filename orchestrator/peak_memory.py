"""The memory a run takes, over all its processes on this machine."""

from __future__ import annotations

import threading

import psutil

INTERVAL_S = 2.0


class PeakMemory:
    """Samples this process and all its descendants while entered.

    Counts the proportional set size, in which a page that several processes share counts once.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=INTERVAL_S)

    def _watch(self) -> None:
        this = psutil.Process()
        while not self._done.wait(INTERVAL_S):
            tree = [this, *this.children(recursive=True)]
            self.peak_bytes = max(self.peak_bytes, sum(_pss_bytes(process) for process in tree))


def _pss_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return 0  # it has ended since the tree was listed
