"""Callers that use this library as its README shows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import numpy as np

import triton_zerocopy as tz

from .callers import Caller
from .workloads import Tensors, Workload


def speaks_http() -> bool:
    """Tell whether this version takes the urls of Triton's HTTP endpoint."""
    try:
        tz.Client("http://localhost:8000")
    except tz.InputError:
        return False
    return True


class Infer(Caller):
    """``Model.infer``: one copy in, one copy out, into memory of the caller's own."""

    def __init__(self, inputs: Tensors, model: tz.Model) -> None:
        super().__init__(inputs)
        self._model = model

    async def call(self) -> tz.InferResult:
        return await self._model.infer(self.inputs)

    async def outputs(self) -> Tensors:
        return dict(await self.call())


class InferOut(Infer):
    """The same into an array that the caller had before."""

    def __init__(self, inputs: Tensors, model: tz.Model) -> None:
        super().__init__(inputs, model)
        (array,) = inputs.values()
        self._out = {"OUTPUT0": np.empty_like(array)}

    async def call(self) -> tz.InferResult:
        return await self._model.infer(self.inputs, out=self._out)


class Lease(Caller):
    """``Model.lease``, taken and given back for every call; one item is written and read."""

    def __init__(self, inputs: Tensors, model: tz.Model) -> None:
        super().__init__(inputs)
        self._model = model
        self._shapes = {name: array.shape for name, array in inputs.items()}

    async def call(self) -> float:
        async with self._model.lease(self._shapes) as lease:
            lease.inputs["INPUT0"][0] = 1.0
            result = await lease.infer()
            return float(result["OUTPUT0"][0])

    async def outputs(self) -> Tensors:
        async with self._model.lease(self._shapes) as lease:
            for name, array in self.inputs.items():
                lease.inputs[name][...] = array
            result = await lease.infer()
            return {name: array.copy() for name, array in result.items()}


@asynccontextmanager
async def _opened(url: str, name: str, workload: Workload, count: int) -> AsyncIterator[tz.Model]:
    shapes = {f"INPUT{index}": workload.shape for index in range(workload.pairs)}
    async with (
        tz.Client(url) as client,
        client.model(name, memory="system", slots=count, shapes=shapes) as model,
    ):
        yield model


@asynccontextmanager
async def infer(
    url: str, name: str, workload: Workload, count: int
) -> AsyncIterator[Sequence[Caller]]:
    """Callers of one model with as many slots."""
    async with _opened(url, name, workload, count) as model:
        yield [Infer(workload.inputs(seed), model) for seed in range(count)]


@asynccontextmanager
async def lease(
    url: str, name: str, workload: Workload, count: int
) -> AsyncIterator[Sequence[Caller]]:
    """Callers of one model with as many slots."""
    async with _opened(url, name, workload, count) as model:
        yield [Lease(workload.inputs(seed), model) for seed in range(count)]


@asynccontextmanager
async def http_infer_out(
    url: str, name: str, workload: Workload, count: int
) -> AsyncIterator[Sequence[Caller]]:
    """The same with ``out=`` over HTTP."""
    async with _opened(f"http://{url}", name, workload, count) as model:
        yield [InferOut(workload.inputs(seed), model) for seed in range(count)]


def http_infer(
    url: str, name: str, workload: Workload, count: int
) -> AbstractAsyncContextManager[Sequence[Caller]]:
    """The same as ``infer`` over HTTP."""
    return infer(f"http://{url}", name, workload, count)


def unix_infer(
    url: str, name: str, workload: Workload, count: int
) -> AbstractAsyncContextManager[Sequence[Caller]]:
    """The same as ``infer`` over HTTP through a Unix socket."""
    return infer(f"http+{url}", name, workload, count)


def http_lease(
    url: str, name: str, workload: Workload, count: int
) -> AbstractAsyncContextManager[Sequence[Caller]]:
    """The same as ``lease`` over HTTP."""
    return lease(f"http://{url}", name, workload, count)
