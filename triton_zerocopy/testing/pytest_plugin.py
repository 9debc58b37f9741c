"""Fixtures for pytest: one real server for a test session.

The fixtures are synchronous, so they work with any plugin for async tests. Ask for the plugin
in a conftest.py, and override `triton_models` there to say what is served:

    pytest_plugins = ["triton_zerocopy.testing.pytest_plugin"]

    @pytest.fixture(scope="session")
    def triton_models():
        return {"double": PythonModel(...)}

    async def test_double(triton_server):
        async with Client(triton_server.grpc_url) as client: ...
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from ._server import TritonServer

if TYPE_CHECKING:
    from ._models import ServableModel


@pytest.fixture(scope="session")
def triton_models() -> Mapping[str, ServableModel]:
    """Models that `triton_server` serves, by name. Override it; none by default."""
    return {}


@pytest.fixture(scope="session")
def triton_server_options() -> Mapping[str, Any]:
    """More keyword arguments of TritonServer for `triton_server`. Override it; none by default."""
    return {}


@pytest.fixture(scope="session")
def triton_server(
    request: pytest.FixtureRequest,
    triton_models: Mapping[str, ServableModel],
    triton_server_options: Mapping[str, Any],
) -> Iterator[TritonServer]:
    """A running TritonServer, stopped at the end of the test session."""
    server = TritonServer(models=triton_models, **triton_server_options)
    with _visible_output(request.config):
        server.start()
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def _visible_output(config: pytest.Config) -> Iterator[None]:
    """Let the progress of a first download through, which pytest would hide like a hang."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        yield
        return
    with capture.global_and_fixture_disabled():
        yield
