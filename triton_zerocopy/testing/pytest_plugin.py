"""Fixtures for pytest: one real server for a test session.

The fixtures are synchronous, so they work with any plugin for async tests. Override
`triton_models` in a conftest.py to say what is served:

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

if TYPE_CHECKING:
    from ._models import ServableModel
    from ._server import TritonServer


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
    # Every pytest run of every project that has this package imports this module: keep it light.
    from ._server import TritonServer  # noqa: PLC0415

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
