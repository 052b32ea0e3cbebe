"""Weight transport without an engine: buckets, their manifest, and a broadcast over gloo."""

from itertools import chain, pairwise
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.transfer import (
    BYTES,
    TensorEntry,
    TransferEndpoint,
    manifest_from_wire,
    manifest_to_wire,
    plan_buckets,
)

pytestmark = pytest.mark.integration

SHAPES = st.lists(st.integers(1, 20), max_size=3).map(tuple)
ENTRIES = st.lists(
    st.builds(TensorEntry, st.text(max_size=8), st.sampled_from(sorted(BYTES)), SHAPES)
)
SIZES = st.integers(1, 4000)


def size_bytes(entry: TensorEntry) -> int:
    return entry.numel * BYTES[entry.dtype]


@given(ENTRIES, SIZES)
def test_buckets_hold_every_tensor_once_and_in_order(entries, bucket_bytes):
    buckets = plan_buckets(entries, bucket_bytes)
    assert list(chain.from_iterable(buckets)) == entries
    assert all(buckets)


@given(ENTRIES, SIZES)
def test_a_bucket_is_of_one_dtype_and_keeps_its_size_unless_one_tensor_is_larger(
    entries, bucket_bytes
):
    for bucket in plan_buckets(entries, bucket_bytes):
        assert len({entry.dtype for entry in bucket}) == 1
        assert len(bucket) == 1 or sum(map(size_bytes, bucket)) <= bucket_bytes


@given(ENTRIES, SIZES)
def test_no_two_neighbouring_buckets_of_one_dtype_would_fit_into_one(entries, bucket_bytes):
    buckets = plan_buckets(entries, bucket_bytes)
    for bucket, following in pairwise(buckets):
        if bucket[0].dtype == following[0].dtype:
            assert sum(map(size_bytes, bucket)) + size_bytes(following[0]) > bucket_bytes


@given(ENTRIES, SIZES)
def test_a_manifest_survives_the_wire(entries, bucket_bytes):
    manifest = plan_buckets(entries, bucket_bytes)
    assert manifest_from_wire(manifest_to_wire(manifest)) == manifest


def test_a_scalar_is_one_element():
    assert TensorEntry("scale", "float32", ()).numel == 1


@pytest.fixture
def groups():
    """A sender's and two receivers' view of one broadcast group over loopback."""
    from actors.gloo import join_group, listen_on

    listener = listen_on("127.0.0.1")
    endpoint = TransferEndpoint("127.0.0.1", listener.getsockname()[1], 3, timeout_s=30.0)
    joined = {}

    def join(rank):
        joined[rank] = join_group(endpoint, rank, listener if rank == 0 else None)

    in_threads(*(lambda rank=rank: join(rank) for rank in range(3)))
    return [joined[rank] for rank in range(3)]


def in_threads(*actions) -> None:
    threads = [Thread(target=action) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()


@pytest.mark.parametrize("bucket_bytes", [16, 200, 10**6])
def test_a_broadcast_brings_every_receiver_the_very_tensors(groups, bucket_bytes):
    import torch

    from actors.gloo import receive_buckets, send_buckets

    generator = torch.Generator().manual_seed(0)
    sent = {
        "embedding": torch.randn(7, 5, generator=generator),
        "norm": torch.randn(5, generator=generator),
        "up": torch.randn(3, 5, generator=generator, dtype=torch.bfloat16),
        "view": torch.randn(4, 6, generator=generator).T,  # not contiguous
        "scale": torch.tensor(0.5),
    }
    entries = [
        TensorEntry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in sent.items()
    ]
    manifest = plan_buckets(entries, bucket_bytes)
    received: list[dict] = [{}, {}]

    def receive(place):
        for name, tensor in receive_buckets(groups[place + 1], manifest):
            received[place][name] = tensor.clone()

    in_threads(
        lambda: send_buckets(groups[0], manifest, iter(sent.values())),
        lambda: receive(0),
        lambda: receive(1),
    )
    for tensors in received:
        assert list(tensors) == list(sent)
        for name, tensor in sent.items():
            assert tensors[name].dtype == tensor.dtype
            assert torch.equal(tensors[name], tensor), name


def test_listening_is_on_the_named_address_alone():
    from actors.gloo import listen_on

    with listen_on("127.0.0.1") as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_joining_without_the_others_ends_at_the_deadline(free_port):
    from actors.gloo import join_group

    endpoint = TransferEndpoint("127.0.0.1", free_port, 2, timeout_s=1.0)
    with pytest.raises(RuntimeError):
        join_group(endpoint, 1)
