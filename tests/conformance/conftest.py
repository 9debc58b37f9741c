"""Each test here runs twice: against the real server, and against FakeTriton as that release."""

from __future__ import annotations

import itertools
import os
import secrets
import tempfile

import pytest
from models import MODELS

from triton_zerocopy.testing import FakeTriton, TritonServer

VERSION = "2.51.0"
# The models of test_client.py only: a real server takes a while to start each.
ON_UNIX = {
    "add_one",
    "count",
    "echo",
    "fail",
    "fixed",
    "optional",
    "rows",
    "shout",
    "slow",
    "stream",
}
SERVERS = {
    ("real", False): "triton_server",
    ("fake", False): "fake_triton",
    ("real", True): "real_on_unix",
    ("fake", True): "fake_on_unix",
}


@pytest.fixture
def anyio_backend():
    return ("asyncio", {"debug": True})


@pytest.fixture(scope="session")
def fake_triton():
    with FakeTriton(models=MODELS, version=VERSION) as server:
        yield server


@pytest.fixture(scope="session")
def sockets():
    """Make addresses of Unix sockets for a server, short enough for one."""
    with tempfile.TemporaryDirectory(prefix="tzc-") as directory:
        numbers = itertools.count()

        def make():
            number = next(numbers)
            return {each: f"unix:{directory}/{each}-{number}" for each in ("grpc", "http")}

        yield make
        assert os.listdir(directory) == [], "sockets left"


@pytest.fixture(scope="session")
def real_on_unix(sockets):
    with _real(_few_models(), sockets()) as server:
        yield server
        server.kill()  # an orderly end takes seconds, and nobody looks at it any more


@pytest.fixture(scope="session")
def fake_on_unix(sockets):
    with _fake(_few_models(), sockets()) as server:
        yield server


def _few_models():
    return {name: model for name, model in MODELS.items() if name in ON_UNIX}


def _real(models, addresses, **options):
    args = [f"--{each}-address={address}" for each, address in addresses.items()]
    return TritonServer(models, args=[*options.pop("args", ()), *args], **options)


def _fake(models, addresses, **options):
    listening = {f"{each}_address": address for each, address in addresses.items()}
    return FakeTriton(models, version=VERSION, **listening, **options)


@pytest.fixture(params=["real", "fake"])
def kind(request):
    return request.param


@pytest.fixture
def on_unix():
    """Whether the servers listen on Unix sockets; a module with tests for that overrides it."""
    return False


@pytest.fixture
def server(kind, on_unix, request, leaves_nothing):
    """A server with all models, and the promise that the test leaves nothing behind on it."""
    server = request.getfixturevalue(SERVERS[kind, on_unix])
    if server.version != VERSION:
        pytest.skip(f"the real server here is {server.version}, the fake plays {VERSION}")
    leaves_nothing.watch(server)
    return server


@pytest.fixture
def make_server(kind, on_unix, sockets):
    """Make a server of one's own; options that differ are given for each kind."""

    def make(models, *, real=None, fake=None):
        addresses = sockets() if on_unix else {}
        if kind == "real":
            return _real(models, addresses, **(real or {}))
        return _fake(models, addresses, **(fake or {}))

    return make


@pytest.fixture
def asked(server):
    return server


@pytest.fixture
def region(rpc, memory):
    """Name of a region of 8192 bytes; what it holds is `memory`."""
    name = f"r-{secrets.token_hex(8)}"
    rpc.register(name, memory)
    yield name
    rpc.unregister(name)
