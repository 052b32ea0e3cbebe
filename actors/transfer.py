"""What a weight publication carries: the records that learners and engines agree on.

One broadcast group joins learner rank 0 (rank 0 there too) with every engine. A publication sends
packed buckets: the tensors of a bucket, of one dtype, end to end in one buffer. The manifest names
them, so that both ends cut the buffers alike. Free of torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TransferEndpoint:
    """Where the members of a broadcast group meet."""

    host: str
    port: int
    world_size: int  # engines and the one sender
    timeout_s: float


@dataclass(frozen=True, slots=True)
class TensorEntry:
    name: str
    dtype: str  # "float32", "bfloat16"
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

Bucket = tuple[TensorEntry, ...]  # tensors of one dtype that travel in one buffer
Manifest = tuple[Bucket, ...]


def plan_buckets(entries: Iterable[TensorEntry], bucket_bytes: int) -> Manifest:
    """Cuts tensors, in their order, into buckets of at most `bucket_bytes` (or one tensor)."""
    buckets: list[list[TensorEntry]] = []
    filled = 0
    for entry in entries:
        size = entry.numel * BYTES[entry.dtype]
        fits = buckets and buckets[-1][0].dtype == entry.dtype and filled + size <= bucket_bytes
        if fits:
            buckets[-1].append(entry)
            filled += size
        else:
            buckets.append([entry])
            filled = size
    return tuple(tuple(bucket) for bucket in buckets)


def manifest_to_wire(manifest: Manifest) -> list[list[tuple[str, str, list[int]]]]:
    """Plain lists, as vLLM's control messages carry them."""
    return [[(e.name, e.dtype, list(e.shape)) for e in bucket] for bucket in manifest]


def manifest_from_wire(wire: Sequence[Sequence[Sequence]]) -> Manifest:
    return tuple(tuple(TensorEntry(n, d, tuple(s)) for n, d, s in bucket) for bucket in wire)
