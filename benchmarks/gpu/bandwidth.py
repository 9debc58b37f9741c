"""Copies between the host and the GPU, without any call: this library's, and the GPU's limit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

import triton_zerocopy as tz

from ..callers import Caller
from ..workloads import Array, Tensors, Workload
from .gpus import Gpu, Pinned
from .ours import MEMORY


class Copier(Caller):
    """Somebody who copies an array to the GPU, or from there, again and again.

    Args:
        array: on the host; of the kind of memory that is copied.
        gpu: for copies with CUDA itself.
        region: for copies with this library.
    """

    def __init__(self, array: Array, gpu: Gpu, region: Any) -> None:
        super().__init__({"INPUT0": array})
        self._array = array
        self._gpu = gpu
        self._region = region
        self._on_gpu = region.array(array.shape, array.dtype)

    @abstractmethod
    async def call(self) -> object: ...

    async def outputs(self) -> Tensors:
        await self._put()
        found = await self.call()
        return {"OUTPUT0": found if isinstance(found, np.ndarray) else await self._get()}

    async def _put(self) -> None:
        """Have the contents of the array on the GPU. Not what is measured."""
        await self._region.write(self._array)

    async def _get(self) -> Array:
        found: Array = await self._on_gpu.numpy()
        return found


class PlainUpload(Copier):
    """cudaMemcpyAsync, and waiting for it."""

    async def _put(self) -> None:
        await self._region.write(np.zeros_like(self._array))

    async def call(self) -> None:
        self._gpu.upload(self._on_gpu, self._array)


class RegionWrite(Copier):
    """``Region.write``: through pinned memory of the library's."""

    async def _put(self) -> None:
        pass

    async def call(self) -> None:
        await self._region.write(self._array)


class PlainDownload(Copier):
    """cudaMemcpyAsync into the same array each time, and waiting for it."""

    async def call(self) -> None:
        self._gpu.download(self._array, self._on_gpu)

    async def outputs(self) -> Tensors:
        await self._put()
        expected = self._array.copy()
        self._array[...] = 0
        await self.call()
        found = self._array.copy()
        self._array[...] = expected
        return {"OUTPUT0": found}


class ToNumpy(Copier):
    """``DeviceArray.numpy``: through pinned memory of the library's, into a new array."""

    async def call(self) -> Array:
        return await self._get()


def copier(kind: type[Copier], gpu: Gpu, *, is_pinned: bool = False) -> Any:
    """One who copies."""

    @asynccontextmanager
    async def opened(
        url: str, name: str, workload: Workload, count: int
    ) -> AsyncIterator[Sequence[Caller]]:
        del name
        assert count == 1
        (array,) = workload.inputs(0).values()
        pinned = Pinned()
        try:
            async with (
                tz.Client(url, memory=MEMORY) as client,
                client.region(array.nbytes, memory=MEMORY) as region,
            ):
                yield [kind(pinned.like(array) if is_pinned else array, gpu, region)]
        finally:
            pinned.free()

    return opened
