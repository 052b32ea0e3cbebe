from typing import Any


class BatchService:
    def __init__(self, *a: Any, **k: Any) -> None:
        raise NotImplementedError
