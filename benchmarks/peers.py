"""Callers as a competent user of tritonclient's aio clients writes them, without this library.

They reuse every object that may be reused: requests, regions and arrays. Each caller owns its
memory, so there is no pool, no timeout and no check of the answer either.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.http.aio import InferenceServerClient as HttpClient

from .callers import Caller
from .handmade import GRPC, HTTP, InlineRequest, ShmRequest
from .workloads import Array, Tensors, Workload


class Inline(Caller):
    """Tensors inside the messages; the result is a read-only view of the answer's bytes."""

    def __init__(self, inputs: Tensors, client: Any, model: str, kit: Any = GRPC) -> None:
        super().__init__(inputs)
        self._client = client
        self._model = model
        self._request = InlineRequest(inputs, kit)

    async def call(self) -> Tensors:
        request = self._request
        request.fill()
        return request.read(await self._client.infer(self._model, request.inputs))

    async def outputs(self) -> Tensors:
        return await self.call()


class ByHand(Caller):
    """One input and one output in shared memory: a copy in, a call, a copy out."""

    def __init__(self, inputs: Tensors, client: Any, model: str, kit: Any = GRPC) -> None:
        super().__init__(inputs)
        self._client = client
        self._model = model
        self.request = ShmRequest(inputs, kit)
        self._inputs, self._outputs = [self.request.input], [self.request.output]

    async def call(self) -> Array:
        self.request.fill()
        await self._client.infer(self._model, self._inputs, outputs=self._outputs)
        return self.request.read()

    async def outputs(self) -> Tensors:
        return {"OUTPUT0": await self.call()}

    async def open(self) -> None:
        """Register the region."""
        await self._client.register_system_shared_memory(*self.request.registration)

    async def aclose(self) -> None:
        """Unregister and remove the region."""
        await self._client.unregister_system_shared_memory(self.request.region)
        self.request.close()


class Bare(Caller):
    """The same message again and again on the generated stub; no copies: the floor of grpc.aio."""

    def __init__(self, owner: ByHand, stub: Any, model: str) -> None:
        super().__init__(owner.inputs)
        self._owner = owner.request
        self._stub = stub
        self._message = service_pb2.ModelInferRequest(model_name=model)
        self._message.inputs.append(self._owner.input._get_tensor())
        self._message.outputs.append(self._owner.output._get_tensor())

    async def call(self) -> object:
        return await self._stub.ModelInfer(self._message)

    async def outputs(self) -> Tensors:
        self._owner.fill()
        await self.call()
        return {"OUTPUT0": self._owner.read()}


def inline(
    url: str, name: str, workload: Workload, count: int
) -> AbstractAsyncContextManager[Sequence[Caller]]:
    """Callers on one connection, tensors inside the messages."""
    return _inline(InferenceServerClient(url), name, workload, count, GRPC)


def http_inline(
    url: str, name: str, workload: Workload, count: int
) -> AbstractAsyncContextManager[Sequence[Caller]]:
    """The same over HTTP, on a connection for each caller."""
    return _inline(HttpClient(url), name, workload, count, HTTP)


def by_hand(
    url: str, name: str, workload: Workload, count: int
) -> AbstractAsyncContextManager[Sequence[ByHand]]:
    """Callers on one connection, each with a region of its own."""
    return _by_hand(InferenceServerClient(url), name, workload, count, GRPC)


def http_by_hand(
    url: str, name: str, workload: Workload, count: int
) -> AbstractAsyncContextManager[Sequence[ByHand]]:
    """The same over HTTP, on a connection for each caller."""
    return _by_hand(HttpClient(url), name, workload, count, HTTP)


@asynccontextmanager
async def bare(
    url: str, name: str, workload: Workload, count: int
) -> AsyncIterator[Sequence[Caller]]:
    """Callers on one connection with messages made beforehand."""
    async with by_hand(url, name, workload, count) as owners, grpc.aio.insecure_channel(url) as ch:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(ch)
        yield [Bare(owner, stub, name) for owner in owners]


@asynccontextmanager
async def _inline(
    opened: Any, name: str, workload: Workload, count: int, kit: Any
) -> AsyncIterator[Sequence[Caller]]:
    async with opened as client:
        yield [Inline(workload.inputs(seed), client, name, kit) for seed in range(count)]


@asynccontextmanager
async def _by_hand(
    opened: Any, name: str, workload: Workload, count: int, kit: Any
) -> AsyncIterator[Sequence[ByHand]]:
    async with opened as client:
        callers: list[ByHand] = []
        try:
            for seed in range(count):
                callers.append(ByHand(workload.inputs(seed), client, name, kit))
                await callers[-1].open()
            yield callers
        finally:
            for caller in callers:
                await caller.aclose()
