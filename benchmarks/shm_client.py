"""Callers that use triton-shm-client, the package that does what this one does, synchronously."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from .callers import Caller
from .workloads import Tensors, Workload


def is_here() -> bool:
    """Tell whether the package is installed."""
    return importlib.util.find_spec("triton_shm_client") is not None


class ShmClient(Caller):
    """``infer_shm``. It blocks the event loop, on which nothing else runs meanwhile."""

    def __init__(self, inputs: Tensors, client: Any, model: str) -> None:
        super().__init__(inputs)
        self._client = client
        self._model = model

    async def call(self) -> Tensors:
        results: Tensors = self._client.infer_shm(self._model, self.inputs)
        return results

    async def outputs(self) -> Tensors:
        return await self.call()


@asynccontextmanager
async def infer_shm(
    url: str, name: str, workload: Workload, count: int
) -> AsyncIterator[Sequence[Caller]]:
    """Callers of one client with as many slots."""
    client = importlib.import_module("triton_shm_client").TritonSHMClient(url)
    try:
        client.register_shm_model(
            name,
            inputs=[(f"INPUT{i}", workload.item_shape, np.float32) for i in range(workload.pairs)],
            outputs=[
                (f"OUTPUT{i}", workload.item_shape, np.float32) for i in range(workload.pairs)
            ],
            max_batch_size=workload.shape[0],
            pool_size=count,
        )
        yield [ShmClient(workload.inputs(seed), client, name) for seed in range(count)]
    finally:
        client.close()
