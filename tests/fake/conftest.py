"""FakeTriton alone: what no real server here does."""

from __future__ import annotations

import secrets

import pytest
from conformance.raw import Grpc
from models import MODELS

from triton_zerocopy.testing import FakeTriton


@pytest.fixture
def anyio_backend():
    return ("asyncio", {"debug": True})


@pytest.fixture(scope="session")
def served():
    """One of release 2.51.0 for all tests."""
    with FakeTriton(MODELS) as server:
        yield server


@pytest.fixture
def fake(served, leaves_nothing):
    """The same, without faults before and after, and without what a test might leave."""
    leaves_nothing.watch(served)
    mapped = served.state().mapped
    yield served
    served.clear()
    state = served.state()
    assert not state.registered
    assert state.mapped == mapped


@pytest.fixture
def asked(fake):
    return fake


@pytest.fixture
def region(rpc, memory, fake):
    """Name of a region of 8192 bytes; what it holds is `memory`."""
    name = f"r-{secrets.token_hex(8)}"
    rpc.register(name, memory)
    yield name
    fake.clear()
    with Grpc(fake.grpc_url) as other:
        other.unregister(name)
