"""Callers as a competent user of tritonclient's aio client writes them, without this library.

They reuse every object that may be reused: requests, regions and arrays. Each caller owns its
memory, so there is no pool, no timeout and no check of the answer either.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.grpc.aio import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import shared_memory

from .callers import Caller
from .workloads import Array, Tensors, Workload


class Inline(Caller):
    """Tensors inside the messages; the result is a read-only view of the answer's bytes."""

    def __init__(self, inputs: Tensors, client: InferenceServerClient, model: str) -> None:
        super().__init__(inputs)
        self._client = client
        self._model = model
        self._inputs = [InferInput(name, array.shape, "FP32") for name, array in inputs.items()]
        self._names = [name.replace("INPUT", "OUTPUT") for name in inputs]

    async def call(self) -> Tensors:
        for tensor, array in zip(self._inputs, self.inputs.values(), strict=True):
            tensor.set_data_from_numpy(array)
        result = await self._client.infer(self._model, self._inputs)
        return {name: result.as_numpy(name) for name in self._names}

    async def outputs(self) -> Tensors:
        return await self.call()


class ByHand(Caller):
    """One input and one output in shared memory: a copy in, a call, a copy out."""

    def __init__(self, inputs: Tensors, client: InferenceServerClient, model: str) -> None:
        super().__init__(inputs)
        (self._array,) = inputs.values()
        self._client = client
        self._model = model
        size = self._array.nbytes
        self.region = f"by_hand_{secrets.token_hex(8)}"
        self._handle = shared_memory.create_shared_memory_region(
            self.region, self.region, 2 * size, create_only=True
        )
        self._source: Array | None = self._view(0)
        self._target: Array | None = self._view(size)
        self._input = InferInput("INPUT0", self._array.shape, "FP32")
        self._input.set_shared_memory(self.region, size)
        self._output = InferRequestedOutput("OUTPUT0")
        self._output.set_shared_memory(self.region, size, offset=size)

    async def call(self) -> Array:
        assert self._source is not None
        assert self._target is not None
        self._source[...] = self._array
        await self._client.infer(self._model, [self._input], outputs=[self._output])
        return self._target.copy()

    async def outputs(self) -> Tensors:
        return {"OUTPUT0": await self.call()}

    async def open(self) -> None:
        """Register the region."""
        size = 2 * self._array.nbytes
        await self._client.register_system_shared_memory(self.region, self.region, size)

    async def aclose(self) -> None:
        """Unregister and remove the region."""
        await self._client.unregister_system_shared_memory(self.region)
        self._source = self._target = None
        shared_memory.destroy_shared_memory_region(self._handle)

    def _view(self, offset: int) -> Array:
        shape = self._array.shape
        view: Array = shared_memory.get_contents_as_numpy(self._handle, np.float32, shape, offset)
        return view

    def bare_request(self) -> Any:
        """Return the message of a call."""
        request = service_pb2.ModelInferRequest(model_name=self._model)
        request.inputs.append(self._input._get_tensor())
        request.outputs.append(self._output._get_tensor())
        return request

    async def outputs_of(self, stub: Any, request: Any) -> Tensors:
        """Make a call with a message, copying in and out."""
        assert self._source is not None
        assert self._target is not None
        self._source[...] = self._array
        await stub.ModelInfer(request)
        return {"OUTPUT0": self._target.copy()}


class Bare(Caller):
    """The same message again and again on the generated stub; no copies: the floor of grpc.aio."""

    def __init__(self, owner: ByHand, stub: Any) -> None:
        super().__init__(owner.inputs)
        self._owner = owner
        self._stub = stub
        self._request = owner.bare_request()

    async def call(self) -> object:
        return await self._stub.ModelInfer(self._request)

    async def outputs(self) -> Tensors:
        return await self._owner.outputs_of(self._stub, self._request)


@asynccontextmanager
async def inline(
    url: str, name: str, workload: Workload, count: int
) -> AsyncIterator[Sequence[Caller]]:
    """Callers on one connection, tensors inside the messages."""
    async with InferenceServerClient(url) as client:
        yield [Inline(workload.inputs(seed), client, name) for seed in range(count)]


@asynccontextmanager
async def by_hand(
    url: str, name: str, workload: Workload, count: int
) -> AsyncIterator[Sequence[ByHand]]:
    """Callers on one connection, each with a region of its own."""
    async with InferenceServerClient(url) as client:
        callers: list[ByHand] = []
        try:
            for seed in range(count):
                callers.append(ByHand(workload.inputs(seed), client, name))
                await callers[-1].open()
            yield callers
        finally:
            for caller in callers:
                await caller.aclose()


@asynccontextmanager
async def bare(
    url: str, name: str, workload: Workload, count: int
) -> AsyncIterator[Sequence[Caller]]:
    """Callers on one connection with messages made beforehand."""
    async with by_hand(url, name, workload, count) as owners, grpc.aio.insecure_channel(url) as ch:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(ch)
        yield [Bare(owner, stub) for owner in owners]
