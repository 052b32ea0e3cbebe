"""The memory a run takes, over all its processes on this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable

import psutil

INTERVAL_S = 2.0


class PeakMemory:
    """Samples this process and all its descendants while entered.

    Counts the proportional set size, in which a page that several processes share counts once. For
    that the kernel walks all their page tables, which took a twelfth of a core when it was asked
    each time; so it is asked only when the resident size, shared pages and all, has grown by 0.5 %.
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
        most_resident = 0.0
        while not self._done.wait(INTERVAL_S):
            tree = [this, *this.children(recursive=True)]
            resident = sum(_bytes(process, _resident) for process in tree)
            if resident > most_resident * 1.005:
                most_resident = resident
                taken = sum(_bytes(process, _proportional) for process in tree)
                self.peak_bytes = max(self.peak_bytes, taken)


def _resident(process: psutil.Process) -> int:
    return process.memory_info().rss


def _proportional(process: psutil.Process) -> int:
    return process.memory_full_info().pss


def _bytes(process: psutil.Process, ask: Callable[[psutil.Process], int]) -> int:
    try:
        return ask(process)
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return 0  # it has ended since the tree was listed
