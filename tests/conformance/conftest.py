"""Each test here runs twice: against the real server, and against FakeTriton as that release."""

from __future__ import annotations

import secrets

import pytest
from models import MODELS

from triton_zerocopy.testing import FakeTriton, TritonServer

from .raw import Grpc, Http, Memory

VERSION = "2.51.0"


@pytest.fixture
def anyio_backend():
    return ("asyncio", {"debug": True})


@pytest.fixture(scope="session")
def fake_triton():
    with FakeTriton(models=MODELS, version=VERSION) as server:
        yield server


@pytest.fixture(params=["real", "fake"])
def kind(request):
    return request.param


@pytest.fixture
def server(kind, request, leaves_nothing):
    """A server with all models, and the promise that the test leaves nothing behind on it."""
    server = request.getfixturevalue("triton_server" if kind == "real" else "fake_triton")
    if server.version != VERSION:
        pytest.skip(f"the real server here is {server.version}, the fake plays {VERSION}")
    leaves_nothing.watch(server)
    return server


@pytest.fixture
def make_server(kind):
    """Make a server of one's own; options that differ are given for each kind."""

    def make(models, *, real=None, fake=None):
        if kind == "real":
            return TritonServer(models, **(real or {}))
        return FakeTriton(models, version=VERSION, **(fake or {}))

    return make


@pytest.fixture
def rpc(server):
    with Grpc(server.grpc_url) as rpc:
        yield rpc


@pytest.fixture
def web(server):
    with Http(server.http_url) as web:
        yield web


@pytest.fixture
def memory():
    with Memory() as memory:
        yield memory


@pytest.fixture
def region(rpc, memory):
    """Name of a region of 8192 bytes; what it holds is `memory`."""
    name = f"r-{secrets.token_hex(8)}"
    rpc.register(name, memory)
    yield name
    rpc.unregister(name)
