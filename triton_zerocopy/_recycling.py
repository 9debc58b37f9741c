"""Memory for large results, used again when the caller has let go of it.

A new large array is made of pages that the kernel has to clear first, which takes as long as
the copy into them. So the memory of a result whose last array died is kept, up to a limit,
for the next result of its size. An array that is alive is never touched: a result's memory
comes back through a weak reference to the one array that all views of it keep alive.
"""

from __future__ import annotations

import math
import weakref
from typing import Any, Final

import numpy as np

from ._datatypes import Array, Shape

SMALLEST: Final = 1 << 20
"""Bytes from which a result is worth it; a smaller one is made of warm memory anyway."""

LIMIT: Final = 64 << 20
"""Bytes that are kept at most while no result uses them."""


class Recycler:
    """Makes arrays for results."""

    def __init__(self) -> None:
        # Changed by single operations only, which are atomic: arrays die in any thread.
        self._free: dict[int, Array] = {}

    @property
    def bytes_kept(self) -> int:
        """Bytes that are kept now and that no result uses."""
        return sum(block.nbytes for block in list(self._free.values()))

    def empty(self, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """Return an array whose contents are whatever was there."""
        byte_size = math.prod(shape) * dtype.itemsize
        if byte_size < SMALLEST or dtype.hasobject:
            return np.empty(shape, dtype)
        block = self._take(byte_size)
        # An array over the block's buffer, not a view of the block: numpy makes the views of
        # a view refer to its base, and this is to be the base of all that the caller makes.
        root = np.frombuffer(block.data, np.uint8)
        weakref.finalize(root, self._give_back, block).atexit = False
        return root.view(dtype).reshape(shape)

    def _take(self, byte_size: int) -> Array:
        for key, block in reversed(list(self._free.items())):  # the warmest first
            if block.nbytes == byte_size and self._free.pop(key, None) is block:
                return block
        return np.empty(byte_size, np.uint8)

    def _give_back(self, block: Array) -> None:
        self._free[id(block)] = block
        for key in list(self._free):
            if self.bytes_kept <= LIMIT:
                return
            self._free.pop(key, None)  # the oldest

    def clear(self) -> None:
        """Give all that is kept back to the allocator."""
        self._free.clear()
