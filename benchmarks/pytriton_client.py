"""Callers that use pytriton's asyncio client, which sends tensors inside the messages.

It comes in one wheel with a complete server. The one that `triton_zerocopy.testing` keeps in
its cache will do: of it, only the client part is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from triton_zerocopy.testing._provision import cache_directory

from .callers import Caller
from .workloads import Tensors, Workload


def is_here() -> bool:
    """Tell whether the client can be used."""
    return importlib.util.find_spec("pytriton") is not None or _cached() is not None


class PyTriton(Caller):
    """``AsyncioModelClient.infer_sample`` over gRPC."""

    def __init__(self, inputs: Tensors, client: Any) -> None:
        super().__init__(inputs)
        self._client = client

    async def call(self) -> Tensors:
        results: Tensors = await self._client.infer_sample(**self.inputs)
        return results

    async def outputs(self) -> Tensors:
        return await self.call()


@asynccontextmanager
async def infer(
    url: str, name: str, workload: Workload, count: int
) -> AsyncIterator[Sequence[Caller]]:
    """Callers of one client."""
    async with _client_module().AsyncioModelClient(f"grpc://{url}", name) as client:
        yield [PyTriton(workload.inputs(seed), client) for seed in range(count)]


def _client_module() -> Any:
    cached = _cached()
    if importlib.util.find_spec("pytriton") is None and cached is not None:
        # Its __init__ imports the server part, whose needs are not here; of that, the client
        # only takes the name of a header that no server here asks for.
        package = types.ModuleType("pytriton")
        package.__path__ = [str(cached)]
        package.__spec__ = importlib.util.spec_from_loader("pytriton", None, is_package=True)
        server = types.ModuleType("pytriton.triton")
        server.TRITON_ACCESS_HEADER = "triton-access-token"  # type: ignore[attr-defined]
        sys.modules |= {"pytriton": package, "pytriton.triton": server}
    warnings.filterwarnings("ignore", module="pytriton")  # of a timeout that it sets itself
    return importlib.import_module("pytriton.client")


def _cached() -> Path | None:
    clients = sorted(cache_directory().glob("tritonserver-*/pytriton/client/__init__.py"))
    return clients[-1].parents[1] if clients else None
