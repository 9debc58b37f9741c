"""A real server that may be killed, stopped and starved, and links that may be cut."""

from __future__ import annotations

import contextlib
import logging
import os
import signal

import pytest

from chaos.load import Load, Witness
from chaos.proxy import Proxy
from chaos.served import work_model
from triton_zerocopy.testing import FakeTriton, TritonServer

MODELS = {"work": work_model()}
BY_HAND = ("--model-control-mode=explicit", "--load-model=*")


@pytest.fixture
def anyio_backend():
    return ("asyncio", {"debug": False})


@pytest.fixture(autouse=True)
def unlogged():
    """A captured record keeps its arguments: errors, their frames, and so all that is looked for."""
    logger = logging.getLogger("triton_zerocopy")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


@pytest.fixture(scope="session")
def _unruly():
    with TritonServer(MODELS, args=BY_HAND) as server:
        yield server
        server.kill()  # an orderly end takes seconds, and nobody looks at it any more


@pytest.fixture
def unruly(_unruly, leaves_nothing):
    """The server, running. A test may kill and restart it."""
    if not _unruly.is_running:
        _unruly.restart()  # a test failed before it could
    leaves_nothing.watch(_unruly)
    yield _unruly
    with contextlib.suppress(ProcessLookupError):
        os.kill(_unruly.pid, signal.SIGCONT)
    leaves_nothing.accept_children()


@pytest.fixture(scope="session")
def _fake():
    with FakeTriton(MODELS) as server:
        yield server


@pytest.fixture
def fake(_fake, leaves_nothing):
    leaves_nothing.watch(_fake)
    yield _fake
    _fake.clear()
    _fake.set_client_shm(allowed=True)
    assert _fake.state().mapped == 0


@pytest.fixture
def proxy(unruly, load):
    """A link to the server. Its clients know the server by this address."""
    load.server = unruly
    with Proxy(unruly.grpc_url) as proxy:
        yield proxy


@pytest.fixture
def load(request):
    # The same chance for the same test.
    return Load(seed=request.node.name)


@pytest.fixture
async def witness(unruly):
    async with Witness(unruly):
        yield
