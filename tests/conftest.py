"""One real server for all tests, and a guard that finds what a test left behind."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from conformance.raw import Http
from loops import BOTH
from models import MODELS
from support import own_files, owner_files, url_of

pytest_plugins = ["triton_zerocopy.testing.pytest_plugin", "conformance.fixtures"]

# They say the same on every Python and numpy; see `nox -s tests`.
ONCE = (
    "chaos",
    "conformance",
    "fake",
    "test_bench_command.py",
    "test_benchmarks.py",
    "test_docs.py",
    "test_examples.py",
)


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).parts[0] in ONCE:
            item.add_marker("once")


@pytest.fixture(params=BOTH)
def anyio_backend(request):
    return request.param


@pytest.fixture(scope="session")
def triton_models():
    return MODELS


@pytest.fixture(scope="session")
def triton_server(triton_server):
    yield triton_server
    # An orderly end takes the server seconds; nobody looks at it any more.
    triton_server.kill()


@pytest.fixture
def server(triton_server, leaves_nothing):
    """The server, and the promise that the test leaves nothing behind on it."""
    leaves_nothing.watch(triton_server)
    return triton_server


class Guard:
    """Compares /dev/shm, the server's registrations and the children of this process."""

    def __init__(self):
        self.files = own_files()
        self.children = _children()
        self.server = None

    def watch(self, server):
        self.server = server
        self.registered = _registrations(server)
        self.owners = _owners(server)
        self.files = own_files()
        self.children = _children()

    def accept_children(self):
        """Servers were started or have ended that other tests use, too."""
        self.children = _children()

    def check(self):
        gc.collect()
        assert own_files() == self.files, "files left in /dev/shm"
        if self.server is not None:
            assert _registrations(self.server) == self.registered, "regions left registered"
            assert _owners(self.server) == self.owners, "owner files left"
        assert _children() == self.children, "processes left running"


def _children():
    return set(Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())


def _registrations(server):
    """Ask the server over HTTP, so that nothing of the library is in the way."""
    with Http(server.http_url) as web:
        return {entry["name"] for entry in web.get("/v2/systemsharedmemory/status")}


def _owners(server):
    """The clients of each endpoint have owner files of their own."""
    return owner_files(*[url_of(server, each) for each in ("grpc", "http")])


@pytest.fixture(autouse=True)
def leaves_nothing():
    guard = Guard()
    yield guard
    guard.check()
