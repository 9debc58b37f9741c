"""`CudaRegion`: device memory that a server maps through CUDA IPC.

Rules this module keeps:

- One cudaMalloc of its own for each region, rounded up to what CUDA hands out, so that the
  handle gives nothing else away (CUDA programming guide, "Interprocess Communication").
- The memory is pinned while a server may have it mapped, and freed only after it has provably
  let go: freeing memory that another process has open is undefined. Without that proof it is
  leaked until the process ends.
- Work that other libraries queued on its arrays is waited for before a call uses it.

After an error in `make_region` nothing is left: no memory, no reservation.
"""

from __future__ import annotations

import math
import os
import warnings
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .._cuda import cudart
from .._cuda.arrays import DeviceArray
from .._cuda.device import Device
from .._cuda.foreign import import_view, is_device_tensor
from .._cuda.memory import GRANULE, Allocation, DeviceRoot
from .._cuda.transfer import Side, run_copies
from .._datatypes import BYTES, Array, Shape, datatype_of, dtype_of
from .._errors import InputError, RegionClosed
from .base import Region, RegionHost, check_shape, made_at
from .budget import Budget
from .names import new_name


class CudaRegion(Region):
    """Memory of one GPU, open in this process and in the server.

    Attributes:
        raw_handle: the 64 bytes of its cudaIpcMemHandle_t.
        server_device_id: ordinal of the GPU in the server.
    """

    is_host_accessible = False
    is_device_accessible = True

    def __init__(
        self,
        device: Device,
        keeper: object,
        address: int,
        byte_size: int,
        *,
        name: str,
        raw_handle: bytes,
        server_device_id: int,
        host: RegionHost | None,
        place: str = "",
    ) -> None:
        super().__init__(name, byte_size, host)
        self.memory = f"cuda:{device.id}"
        self.device_id = device.id
        self.raw_handle = raw_handle
        self.server_device_id = server_device_id
        self._device = device
        self._address = address
        self._keeper: object | None = keeper
        self._streams: set[int] = set()
        device.pin(keeper)
        # The pin outlives the region: without proof that the server let go, it is a leak.
        self._unclosed = weakref.finalize(self, _warn_unclosed, os.getpid(), place)

    @property
    def device(self) -> Device:
        """The GPU it is on."""
        return self._device

    # Memory

    def root(self, streams: set[int] | None = None) -> DeviceRoot:
        if self._keeper is None:
            raise RegionClosed("the region is closed; make a new one")
        noted = self._streams if streams is None else streams
        return DeviceRoot(self._device, self._address, self._keeper, noted)

    def free(self) -> None:
        if self._unclosed.detach() is not None:
            self._device.post(partial(self._device.unpin, self._keeper))
        self._keeper = None

    def give_up(self) -> None:
        self._unclosed.detach()
        self._keeper = None

    async def freed(self) -> None:
        device = self._device
        # Unpinning it was a job, after which another one has it freed.
        await device.ask(lambda: None)
        await device.begin(lambda finish: device.blocking.run(lambda: None, finish))

    async def settle(self) -> None:
        if self._streams:
            await self._device.settle(self._streams)

    # Views and places

    def array(self, shape: Sequence[int], dtype: npt.DTypeLike, *, offset: int = 0) -> Any:
        self._check_open()
        wanted = np.dtype(dtype)
        datatype = datatype_of(wanted)
        if datatype is None or datatype == BYTES or not wanted.isnative:
            raise InputError(f"an array over device memory needs a numeric dtype, not {wanted}")
        return self._array(check_shape(shape), datatype, offset)

    def _array(self, shape: Shape, datatype: str, offset: int) -> DeviceArray:
        self.check_range(offset, math.prod(shape) * dtype_of(datatype).itemsize)
        return DeviceArray(self.root(), offset, shape, datatype)

    async def write(self, value: Any, *, offset: int = 0) -> int:
        self._check_open()
        self._check_quiet()
        if is_device_tensor(value):
            view = import_view(value, self._device, "Region.write")
            return await self._store(view.shape, view.datatype, view, offset)
        host = value if isinstance(value, np.ndarray) else np.frombuffer(value, np.uint8)
        datatype = datatype_of(host.dtype)
        if datatype is None or datatype == BYTES:
            raise InputError(f"cannot write items of dtype {host.dtype} into device memory")
        return await self._store(host.shape, datatype, host, offset)

    async def _store(self, shape: Shape, datatype: str, source: Side, offset: int) -> int:
        target = self._array(shape, datatype, offset)
        await self._copy_pair(target, source)
        return target.nbytes

    async def read(self, shape: Sequence[int], datatype: str, *, offset: int = 0) -> Array:
        self._check_open()
        if datatype == BYTES:
            raise InputError("BYTES cannot be in device memory; let them go inside the message")
        dtype_of(datatype)
        return await self._array(check_shape(shape), datatype, offset).numpy()

    async def _copy_pair(self, target: Side, source: Side) -> None:
        device = self._device
        await device.begin(lambda finish: run_copies(device, [(target, source)], finish))


async def make_region(
    device: Device,
    byte_size: int,
    *,
    owner_id: str,
    budget: Budget,
    server_device_id: int,
    host: RegionHost | None = None,
    place: str = "",
) -> CudaRegion:
    """Make a region of device memory.

    Raises:
        CapacityError: the GPU is full, or the budget is.
        CudaError: the memory cannot be shared.

    Cancellation: what was made by then is given back.
    """
    rounded = -(-byte_size // GRANULE) * GRANULE
    token = budget.reserve(rounded)

    def make() -> tuple[Allocation, bytes]:
        allocation = Allocation(device, rounded)
        return allocation, cudart.ipc_handle(allocation.address)

    try:
        allocation, raw_handle = await device.ask(make)
    except BaseException:
        budget.release(token)
        raise
    weakref.finalize(allocation, budget.release, token).atexit = False
    return CudaRegion(
        device,
        allocation,
        allocation.address,
        byte_size,
        name=new_name(owner_id),
        raw_handle=raw_handle,
        server_device_id=server_device_id,
        host=host,
        place=place,
    )


def _warn_unclosed(pid: int, place: str) -> None:
    if os.getpid() != pid:
        return
    warnings.warn(
        f"device memory was never closed{made_at(place)}, so it stays allocated until the "
        "process ends; use "
        "`async with` or `await ....aclose()`",
        ResourceWarning,
        stacklevel=2,
    )
