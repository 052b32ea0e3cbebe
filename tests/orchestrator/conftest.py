"""A real Redis for the tests of what is kept in it."""

import pytest

from orchestrator.store import open_store


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with open_store(None, tmp_path_factory.mktemp("run")) as store:
        yield store.client


@pytest.fixture
def client(server):
    server.flushall()
    return server
