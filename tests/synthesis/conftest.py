"""Fixtures of what writes traces."""

import pytest
from batch_drivers import Clock, starts
from batch_stub import KEY, BatchStub, serving


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def stub(clock, monkeypatch):
    """A stand-in for the services that answer in batches."""
    monkeypatch.setenv("STUB_KEY", KEY)
    async with serving(BatchStub(clock)) as stub:
        yield stub


@pytest.fixture
def start(stub, clock, tmp_path):
    return starts(stub, clock, tmp_path)
