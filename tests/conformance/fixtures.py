"""Raw clients of the server that a fixture ``asked`` gives, and memory to register there."""

from __future__ import annotations

import pytest

from .raw import Grpc, Http, Memory


@pytest.fixture
def rpc(asked):
    with Grpc(asked.grpc_url) as rpc:
        yield rpc


@pytest.fixture
def web(asked):
    with Http(asked.http_url) as web:
        yield web


@pytest.fixture
def memory():
    with Memory() as memory:
        yield memory
