"""Device memory and who keeps it alive.

An `Allocation` is freed in its device's thread when nobody refers to it any more; what is
collected only leaves a message there. While a server has it mapped it is pinned, so that no
accident frees it: a lost allocation is a leak, a freed one would be somebody else's data.

A `DeviceRoot` is what all arrays over one piece of memory refer to, as the base of numpy's
views is: it dies with the last of them, and knows on which streams they were used.
"""

from __future__ import annotations

import logging
import weakref
from functools import partial
from typing import TYPE_CHECKING, Final

from .._errors import CudaError
from . import cudart

if TYPE_CHECKING:
    from .device import Device

logger = logging.getLogger("triton_zerocopy")

GRANULE: Final = 2 << 20
"""cudaMalloc makes blocks of 2 MiB and puts small allocations together in one; an IPC handle
gives away the whole block."""


class Allocation:
    """Memory of the library's own, from cudaMalloc. Made in the device's thread."""

    __slots__ = ("__weakref__", "_end", "address", "byte_size", "device")

    def __init__(self, device: Device, byte_size: int) -> None:
        self.device = device
        self.byte_size = byte_size
        self.address = cudart.malloc(byte_size)
        device.count_users(1)
        free = partial(_free, device, self.address)
        self._end = weakref.finalize(self, device.post, free)
        self._end.atexit = False

    def free_now(self) -> None:
        """Free it, in the device's thread, which waits for it; nobody uses it any more."""
        if self._end.detach() is None:
            return
        error = None
        try:
            cudart.free(self.address)
        except CudaError as problem:
            error = problem
        _freed(self.device, error)


def _free(device: Device, address: int) -> None:
    device.blocking.run(partial(cudart.free, address), partial(_freed, device))


def _freed(device: Device, error: BaseException | None) -> None:
    if error is not None:
        logger.warning("%r: memory could not be freed: %s", device, error)
    device.count_users(-1)


class DeviceRoot:
    """What all arrays over one piece of device memory keep alive.

    Attributes:
        device: whose memory it is.
        keeper: keeps the memory itself alive.
        streams: those that other libraries use the arrays on, by what they said.
    """

    __slots__ = ("__weakref__", "_address", "device", "keeper", "streams")

    def __init__(
        self, device: Device, address: int, keeper: object, streams: set[int] | None = None
    ) -> None:
        self.device = device
        self.keeper = keeper
        self.streams: set[int] = set() if streams is None else streams
        self._address = address

    @property
    def address(self) -> int:
        """Where it begins."""
        return self._address

    def bind(self) -> None:
        """In the device's thread, before the first use: see to it that there is memory."""
