"""A count of an engine's iterations, by which one that hangs is told from one that is slow."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import PrometheusStatLogger


class ProgressCounter(PrometheusStatLogger):
    """Stands in for vLLM's Prometheus metrics, which it would else write beside ours."""

    iterations = 0  # of the one engine of this process

    def __init__(self, **_: Any) -> None:
        pass

    def record(self, *_: Any, **__: Any) -> None:
        ProgressCounter.iterations += 1

    def log_engine_initialized(self) -> None:
        pass

    def log(self) -> None:
        pass

    def record_sleep_state(self, *_: Any, **__: Any) -> None:
        pass
