"""Which of many engines has the least to do, in logarithmic time."""

from __future__ import annotations

import heapq


class Loads:
    """Samples in flight of each engine that takes work."""

    def __init__(self) -> None:
        self._in_flight: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []  # with entries that are out of date

    def __len__(self) -> int:
        return len(self._in_flight)

    def set(self, engine: int, in_flight: int) -> None:
        self._in_flight[engine] = in_flight
        heapq.heappush(self._heap, (in_flight, engine))
        if len(self._heap) > 4 * len(self._in_flight) + 64:
            self._heap = [(samples, number) for number, samples in self._in_flight.items()]
            heapq.heapify(self._heap)

    def remove(self, engine: int) -> None:
        self._in_flight.pop(engine, None)

    def least(self) -> int | None:
        """The engine with the fewest samples in flight, of several the first."""
        while self._heap:
            in_flight, engine = self._heap[0]
            if self._in_flight.get(engine) == in_flight:
                return engine
            heapq.heappop(self._heap)
        return None
