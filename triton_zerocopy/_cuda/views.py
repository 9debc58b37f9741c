"""`DeviceView`: a tensor somewhere in device memory, whoever owns it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .._datatypes import DTYPES, Shape


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A tensor in device memory.

    Attributes:
        address: of its first element; 0 for a tensor without elements.
        shape: its shape.
        strides: bytes from one element to the next along each dimension.
        datatype: Triton's name of it.
        device_id: ordinal of the GPU; None while it is not known.
        keeper: what keeps the memory alive.
        after: streams whose queued work comes before any use of the memory.
        stream: a stream of this library that its owner has ordered its work before; 0 if the
            owner was not asked.
        is_read_only: True if the owner forbids writing.
    """

    address: int
    shape: Shape
    strides: Shape
    datatype: str
    device_id: int | None
    keeper: object
    after: frozenset[int] = frozenset()
    stream: int = 0
    is_read_only: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.datatype].itemsize

    @property
    def byte_size(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.itemsize

    @property
    def is_contiguous(self) -> bool:
        """True if the elements lie one after another in C order."""
        expected = packed_strides(self.shape, self.itemsize)
        return 0 in self.shape or all(
            mine == theirs or size == 1
            for mine, theirs, size in zip(self.strides, expected, self.shape, strict=True)
        )

    def __getitem__(self, rows: slice) -> DeviceView:
        """Return rows that follow each other."""
        start, stop, _ = rows.indices(self.shape[0])
        return replace(
            self,
            address=self.address + start * self.strides[0],
            shape=(stop - start, *self.shape[1:]),
        )


def packed_strides(shape: Shape, itemsize: int) -> Shape:
    """Return the strides in bytes of a tensor in C order."""
    strides = []
    step = itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
