"""Weight transport over gloo: joining the broadcast group, sending and receiving buckets.

A group is a torch process group, which torch leaves without type declarations.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.distributed_c10d import PrefixStore, ProcessGroupGloo, Store

from actors.transfer import Manifest, TransferEndpoint


def listen_on(host: str) -> socket.socket:
    """A listening socket on a free port of `host` alone (TCPStore itself would take them all)."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, 0))
    listener.listen(128)
    return listener


def open_store(endpoint: TransferEndpoint, listener: socket.socket | None = None) -> Store:
    """The key-value store through which a group's members find each other.

    The member that holds the endpoint's `listener` serves it; the others connect.
    """
    return TCPStore(
        endpoint.host,
        endpoint.port,
        endpoint.world_size,
        is_master=listener is not None,
        timeout=timedelta(seconds=endpoint.timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach() if listener is not None else None,
    )


def join_group(endpoint: TransferEndpoint, rank: int, listener: socket.socket | None = None) -> Any:
    """Joins the broadcast group; returns when all members have, or raises after the timeout."""
    options: Any = ProcessGroupGloo._Options()  # pyright: ignore[reportAttributeAccessIssue]
    options._devices = [ProcessGroupGloo.create_device(hostname=own_address(endpoint.host))]
    options._timeout = timedelta(seconds=endpoint.timeout_s)
    store = PrefixStore("weights", open_store(endpoint, listener))
    return ProcessGroupGloo(store, rank, endpoint.world_size, options)


def own_address(peer: str) -> str:
    """The local address that traffic to `peer` leaves from (no packet is sent)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))
        return probe.getsockname()[0]


def send_buckets(group: Any, manifest: Manifest, tensors: Iterator[torch.Tensor]) -> None:
    """Broadcasts `tensors`, which come in the manifest's order, from rank 0."""
    for bucket in manifest:
        parts = [next(tensors).detach().reshape(-1) for _ in bucket]
        group.broadcast([torch.cat(parts).cpu()], _from_rank_zero()).wait()


def receive_buckets(group: Any, manifest: Manifest) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields (name, tensor) pairs; each tensor is a view of its bucket's buffer."""
    for bucket in manifest:
        numel = sum(entry.numel for entry in bucket)
        buffer = torch.empty(numel, dtype=getattr(torch, bucket[0].dtype))
        group.broadcast([buffer], _from_rank_zero()).wait()
        offset = 0
        for entry in bucket:
            yield entry.name, buffer[offset : offset + entry.numel].view(entry.shape)
            offset += entry.numel


def _from_rank_zero() -> torch.distributed.BroadcastOptions:
    options = torch.distributed.BroadcastOptions()
    options.rootRank = 0
    options.rootTensor = 0
    return options
