"""Callers that use this library on a GPU."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import numpy as np

import triton_zerocopy as tz

from ..callers import Caller
from ..workloads import Array, Tensors, Workload
from .gpus import Gpu

MEMORY = "cuda:0"


class Infer(Caller):
    """``Model.infer`` with a tensor on the GPU: the GPU copies it in, and the result out."""

    def __init__(self, inputs: Tensors, model: tz.Model, gpu: Gpu) -> None:
        super().__init__(inputs)
        (self._array,) = inputs.values()
        self._model = model
        self._gpu = gpu
        self._x = gpu.tensor(self._array)

    async def call(self) -> Any:
        return (await self._model.infer({"INPUT0": self._x}))["OUTPUT0"]

    async def outputs(self) -> Tensors:
        self._gpu.upload(self._x, self._array)
        return {"OUTPUT0": await (await self.call()).numpy()}


class InferNumpy(Caller):
    """The same with arrays on the host: through pinned memory, in and out."""

    def __init__(self, inputs: Tensors, model: tz.Model) -> None:
        super().__init__(inputs)
        self._model = model

    async def call(self) -> Array:
        return await (await self._model.infer(self.inputs)).numpy("OUTPUT0")

    async def outputs(self) -> Tensors:
        return {"OUTPUT0": await self.call()}


class Lease(Caller):
    """``Model.lease``, taken and given back for every call; the model works in place."""

    def __init__(self, inputs: Tensors, model: tz.Model) -> None:
        super().__init__(inputs)
        (self._array,) = inputs.values()
        self._model = model
        self._shapes = {"INPUT0": self._array.shape}

    async def call(self) -> int:
        async with self._model.lease(self._shapes) as lease:
            result = await lease.infer()
            return int(result["OUTPUT0"].nbytes)

    async def outputs(self) -> Tensors:
        async with self._model.lease(self._shapes) as lease:
            await lease.inputs["INPUT0"].write(self._array)
            result = await lease.infer()
            return {"OUTPUT0": await result.numpy("OUTPUT0")}


class Adopted(Caller):
    """``Client.adopt``: tensors of another library, which the server uses where they are."""

    def __init__(self, inputs: Tensors, client: tz.Client, model: str, gpu: Gpu) -> None:
        super().__init__(inputs)
        (self._array,) = inputs.values()
        self._client = client
        self._model = model
        self._gpu = gpu
        self._x = gpu.tensor(self._array)
        self._y = gpu.tensor(np.zeros_like(self._array))

    async def open(self, stack: AsyncExitStack) -> None:
        """Have the server map the tensors."""
        self._source = await stack.enter_async_context(self._client.adopt(self._x))
        self._target = await stack.enter_async_context(self._client.adopt(self._y))

    async def call(self) -> Any:
        return await self._client.infer(
            self._model, {"INPUT0": self._source}, outputs={"OUTPUT0": self._target}
        )

    async def outputs(self) -> Tensors:
        self._gpu.upload(self._x, self._array)
        await self.call()
        found = np.empty_like(self._array)
        self._gpu.download(found, self._y)
        return {"OUTPUT0": found}


@asynccontextmanager
async def _opened(url: str, name: str, workload: Workload, count: int) -> AsyncIterator[tz.Model]:
    async with (
        tz.Client(url, memory=MEMORY) as client,
        client.model(name, slots=count, shapes={"INPUT0": workload.shape}) as model,
    ):
        yield model


def infer_with(gpu: Gpu) -> Any:
    """Callers of one model with as many slots."""

    @asynccontextmanager
    async def infer(
        url: str, name: str, workload: Workload, count: int
    ) -> AsyncIterator[Sequence[Caller]]:
        async with _opened(url, name, workload, count) as model:
            yield [Infer(workload.inputs(seed), model, gpu) for seed in range(count)]

    return infer


@asynccontextmanager
async def infer_numpy(
    url: str, name: str, workload: Workload, count: int
) -> AsyncIterator[Sequence[Caller]]:
    """Callers of one model with as many slots."""
    async with _opened(url, name, workload, count) as model:
        yield [InferNumpy(workload.inputs(seed), model) for seed in range(count)]


@asynccontextmanager
async def lease(
    url: str, name: str, workload: Workload, count: int
) -> AsyncIterator[Sequence[Caller]]:
    """Callers of one model with as many slots."""
    async with _opened(url, name, workload, count) as model:
        yield [Lease(workload.inputs(seed), model) for seed in range(count)]


def adopted_with(gpu: Gpu) -> Any:
    """Callers of one client, each with an adopted input and output."""

    @asynccontextmanager
    async def adopted(
        url: str, name: str, workload: Workload, count: int
    ) -> AsyncIterator[Sequence[Caller]]:
        async with tz.Client(url, memory=MEMORY) as client, AsyncExitStack() as stack:
            callers = [Adopted(workload.inputs(seed), client, name, gpu) for seed in range(count)]
            for caller in callers:
                await caller.open(stack)
            yield callers

    return adopted
