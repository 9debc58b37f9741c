"""`DeviceResults`: memory for results, used again when nobody holds the result any more.

cudaMalloc and cudaFree stop the GPU for everyone, so neither is on the path of a call: a
result's memory comes back when its last array has died and all that was queued on it is done.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Final

from .._datatypes import Shape, byte_size_of
from .._errors import CapacityError
from .arrays import DeviceArray
from .device import Device
from .memory import GRANULE, Allocation, DeviceRoot

LIMIT: Final = 256 << 20
"""Bytes of a device that are kept at most while no result uses them."""

_SMALLEST: Final = 512


class DeviceResults:
    """Makes arrays for results on one device. Its lists are the device's thread's own."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._free: list[Allocation] = []
        self._is_closed = False

    def empty(self, shape: Shape, datatype: str) -> DeviceArray:
        """Return an array whose contents are whatever was there; from any thread.

        It gets its memory when it is first copied to.
        """
        root = _ResultRoot(self, byte_size_of(shape, datatype))
        return DeviceArray(root, 0, shape, datatype)

    def close(self) -> None:
        """Keep nothing from now on."""

        def drop() -> None:
            self._is_closed = True
            self._free.clear()

        self._device.post(drop)

    # In the device's thread

    def take(self, byte_size: int) -> Allocation:
        """Return memory of at least so many bytes. Raises CapacityError."""
        wanted = rounded(byte_size)
        for index in reversed(range(len(self._free))):  # the warmest first
            if self._free[index].byte_size == wanted:
                return self._free.pop(index)
        try:
            return Allocation(self._device, wanted)
        except CapacityError:
            if not self._free:
                raise
            # What is kept may be what is missing; its freeing is a job that comes later.
            kept, self._free = self._free, []
            for allocation in kept:
                allocation.free_now()
            return Allocation(self._device, wanted)

    def give_back(self, allocation: Allocation, error: BaseException | None) -> None:
        """Nothing uses this memory any more."""
        if self._is_closed or error is not None:
            return
        self._free.append(allocation)
        while sum(each.byte_size for each in self._free) > LIMIT:
            self._free.pop(0)  # the oldest


class _ResultRoot(DeviceRoot):
    """A root whose memory is found when it is first needed."""

    __slots__ = ("_byte_size", "_results")

    def __init__(self, results: DeviceResults, byte_size: int) -> None:
        super().__init__(results._device, 0, None)  # noqa: SLF001 # of this module
        self._results = results
        self._byte_size = byte_size

    def bind(self) -> None:
        if self._address or not self._byte_size:
            return
        allocation = self._results.take(self._byte_size)
        self.keeper = allocation
        self._address = allocation.address
        end = partial(_ended, self._results, self.device, allocation, self.streams)
        weakref.finalize(self, end).atexit = False


def _ended(
    results: DeviceResults, device: Device, allocation: Allocation, streams: set[int]
) -> None:
    give_back = partial(results.give_back, allocation)
    device.post(lambda: device.streams.when_settled(streams, give_back))


def rounded(byte_size: int) -> int:
    """Return the size of the memory for a result, so that like sizes share it."""
    if byte_size > GRANULE:
        return -(-byte_size // GRANULE) * GRANULE
    return max(_SMALLEST, 1 << (byte_size - 1).bit_length())
