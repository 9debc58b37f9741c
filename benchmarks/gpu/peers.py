"""Callers as a user of tritonclient writes them, with tensors on a GPU.

They reuse every object that may be reused: requests, regions, arrays and tensors.
"""

from __future__ import annotations

import importlib
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from tritonclient.grpc.aio import InferenceServerClient, InferInput, InferRequestedOutput

from ..callers import Caller
from ..peers import Inline
from ..workloads import Array, Tensors, Workload
from .gpus import FLOAT, Gpu


class InlineFromGpu(Caller):
    """Tensors inside the messages: from the GPU to an array before, and back behind."""

    def __init__(
        self, inputs: Tensors, client: InferenceServerClient, model: str, gpu: Gpu
    ) -> None:
        super().__init__(inputs)
        (self._array,) = inputs.values()
        self._gpu = gpu
        self._x = gpu.tensor(self._array)
        self._y = gpu.tensor(np.zeros_like(self._array))
        self._host = np.empty_like(self._array)
        self._inline = Inline({"INPUT0": self._host}, client, model)

    async def call(self) -> Any:
        self._gpu.download(self._host, self._x)
        result = await self._inline.call()
        self._gpu.upload(self._y, result["OUTPUT0"])
        return self._y

    async def outputs(self) -> Tensors:
        self._gpu.upload(self._x, self._array)
        await self.call()
        found = np.empty_like(self._array)
        self._gpu.download(found, self._y)
        return {"OUTPUT0": found}


class Helpers(Caller):
    """``tritonclient.utils.cuda_shared_memory``: an input and an output, each with a region."""

    def __init__(self, inputs: Tensors, client: InferenceServerClient, model: str) -> None:
        super().__init__(inputs)
        (self._array,) = inputs.values()
        self._client = client
        self._model = model
        self._helpers = importlib.import_module("tritonclient.utils.cuda_shared_memory")
        name, size = f"helpers_{secrets.token_hex(8)}", self._array.nbytes
        self._names = [f"{name}_in", f"{name}_out"]
        self._source, self._target = (
            self._helpers.create_shared_memory_region(each, size, 0) for each in self._names
        )
        self._input = InferInput("INPUT0", self._array.shape, "FP32")
        self._input.set_shared_memory(self._names[0], size)
        self._output = InferRequestedOutput("OUTPUT0")
        self._output.set_shared_memory(self._names[1], size)

    async def open(self) -> None:
        """Register the regions."""
        for name, region in zip(self._names, (self._source, self._target), strict=True):
            handle = self._helpers.get_raw_handle(region)
            await self._client.register_cuda_shared_memory(name, handle, 0, self._array.nbytes)

    async def aclose(self) -> None:
        """Unregister the regions and free them."""
        for name in self._names:
            await self._client.unregister_cuda_shared_memory(name)
        for region in (self._source, self._target):
            self._helpers.destroy_shared_memory_region(region)
        del self._source, self._target, region

    async def _infer(self) -> None:
        await self._client.infer(self._model, [self._input], outputs=[self._output])


class HelpersOnGpu(Helpers):
    """A tensor in by DLPack, which copies on the GPU, and a copy out on the GPU."""

    def __init__(
        self, inputs: Tensors, client: InferenceServerClient, model: str, gpu: Gpu
    ) -> None:
        super().__init__(inputs, client, model)
        self._gpu = gpu
        self._x = gpu.tensor(self._array)
        self._y = gpu.tensor(np.zeros_like(self._array))

    async def call(self) -> Any:
        self._helpers.set_shared_memory_region_from_dlpack(self._source, [self._x])
        await self._infer()
        # What a consumer of as_shared_memory_tensor does to keep the result.
        place = self._gpu.address(self._y)
        self._gpu.copy(place, int(self._target._base_addr), self._array.nbytes)
        return self._y

    async def outputs(self) -> Tensors:
        self._gpu.upload(self._x, self._array)
        await self.call()
        found = np.empty_like(self._array)
        self._gpu.download(found, self._y)
        return {"OUTPUT0": found}


class HelpersFromHost(Helpers):
    """A numpy array in and out."""

    async def call(self) -> Array:
        self._helpers.set_shared_memory_region(self._source, [self._array])
        await self._infer()
        found: Array = self._helpers.get_contents_as_numpy(self._target, FLOAT, self._array.shape)
        return found

    async def outputs(self) -> Tensors:
        return {"OUTPUT0": await self.call()}


def inline_with(gpu: Gpu) -> Any:
    """Callers on one connection, tensors inside the messages."""

    @asynccontextmanager
    async def inline(
        url: str, name: str, workload: Workload, count: int
    ) -> AsyncIterator[Sequence[Caller]]:
        async with InferenceServerClient(url) as client:
            yield [InlineFromGpu(workload.inputs(seed), client, name, gpu) for seed in range(count)]

    return inline


def helpers_with(gpu: Gpu) -> Any:
    """Callers on one connection, tensors on the GPU."""
    return _with_helpers(lambda inputs, client, name: HelpersOnGpu(inputs, client, name, gpu))


def _with_helpers(make: Any) -> Any:
    @asynccontextmanager
    async def helpers(
        url: str, name: str, workload: Workload, count: int
    ) -> AsyncIterator[Sequence[Caller]]:
        async with InferenceServerClient(url) as client:
            callers: list[Helpers] = []
            try:
                for seed in range(count):
                    callers.append(make(workload.inputs(seed), client, name))
                    await callers[-1].open()
                yield callers
            finally:
                for caller in callers:
                    await caller.aclose()

    return helpers


helpers_numpy = _with_helpers(HelpersFromHost)
"""Callers on one connection, arrays on the host."""
