"""Copies: what they check at the call, and what they do when their stream runs.

CUDA's promises about host memory (its "API synchronization behavior"), each kept to the letter:

- A pageable source is read before the call returns, as into a staging buffer.
- A pageable target is complete when the call returns.
- Pinned and managed memory is read and written when the stream gets there, and not before.
- From host to host, the call does it all.
"""

from __future__ import annotations

import ctypes
import dataclasses

from . import _memory
from ._enums import cudaMemcpyKind
from ._machine import Failure, machine, origin
from ._memory import Allocation
from ._streams import Stream, wait_for

_FROM_HOST = (cudaMemcpyKind.cudaMemcpyHostToHost, cudaMemcpyKind.cudaMemcpyHostToDevice)
_TO_HOST = (cudaMemcpyKind.cudaMemcpyHostToHost, cudaMemcpyKind.cudaMemcpyDeviceToHost)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a copy begins or ends.

    Attributes:
        address: as the caller gave it.
        allocation: what it lies in; None is pageable memory of the host.
    """

    address: int
    allocation: Allocation | None

    @property
    def is_pageable(self) -> bool:
        return self.allocation is None

    @property
    def is_host(self) -> bool:
        return self.allocation is None or self.allocation.is_host

    @property
    def is_device(self) -> bool:
        """Whether it counts as device memory; managed memory counts as both."""
        return self.allocation is not None and self.allocation.kind != "host"

    def now(self) -> int:
        """Return where the bytes are, at the time that the stream gets there."""
        if self.allocation is None:
            return self.address
        if not self.allocation.is_alive:
            raise Failure("cudaErrorIllegalAddress")
        return self.allocation.visible + self.address - self.allocation.address


def place(address: int, size: int) -> Place:
    """Look up an address.

    Raises:
        Failure: the bytes reach beyond the allocation that they begin in, or there is nothing.
    """
    allocation = _memory.find(address)
    if address == 0:
        raise Failure("cudaErrorInvalidValue")
    if allocation is None:
        if _memory.is_reserved(address):
            raise Failure("cudaErrorInvalidValue")  # device memory that was freed
    elif address + size > allocation.address + allocation.size:
        raise Failure("cudaErrorInvalidValue")
    return Place(address, allocation)


def copy(
    target: int,
    target_pitch: int,
    source: int,
    source_pitch: int,
    width: int,
    height: int,
    kind: cudaMemcpyKind,
    stream: Stream,
) -> None:
    """Queue the copy of `height` rows of `width` bytes."""
    if width == 0 or height == 0:
        return
    to = place(target, target_pitch * (height - 1) + width)
    of = place(source, source_pitch * (height - 1) + width)
    _check_kind(kind, to, of)
    direction = _direction(to, of)
    machine.copied[origin(), direction] += width * height

    rows = range(height)
    if of.is_pageable:
        start = of.now()
        staged = [ctypes.string_at(start + row * source_pitch, width) for row in rows]

        def run() -> None:
            end = to.now()
            for row, data in enumerate(staged):
                ctypes.memmove(end + row * target_pitch, data, width)
    else:

        def run() -> None:
            start, end = of.now(), to.now()
            for row in rows:
                ctypes.memmove(end + row * target_pitch, start + row * source_pitch, width)

    operation = stream.push(run)
    if to.is_pageable or direction == "H2H":
        wait_for([operation])


def fill(address: int, value: int, size: int, stream: Stream) -> None:
    """Queue a memset."""
    if size == 0:
        return
    to = place(address, size)
    if not to.is_device:
        raise Failure("cudaErrorInvalidValue")
    _check_reach(to, stream.device)

    def run() -> None:
        ctypes.memset(to.now(), value & 0xFF, size)

    stream.push(run)


def check_on_device(address: int, device: int) -> None:
    """Raise if it is not memory of this GPU."""
    allocation = _memory.find(address)
    if allocation is None or allocation.kind == "host" or allocation.device != device:
        raise Failure("cudaErrorInvalidValue")


def _check_kind(kind: cudaMemcpyKind, to: Place, of: Place) -> None:
    """Raise if the kind of the copy is not that of the pointers."""
    if kind == cudaMemcpyKind.cudaMemcpyDefault:
        return
    for expects_host, end in ((kind in _FROM_HOST, of), (kind in _TO_HOST, to)):
        if expects_host and not end.is_host:
            raise Failure("cudaErrorInvalidValue")
        if not expects_host and not end.is_device:
            raise Failure("cudaErrorInvalidValue")


def _check_reach(to: Place, device: int) -> None:
    """A kernel (memset is one) reaches other GPUs' memory only as their peer; copies do always."""
    allocation = to.allocation
    assert allocation is not None
    if allocation.kind == "managed" or allocation.device == device:
        return
    if not machine.can_access_peer(device, allocation.device):
        raise Failure("cudaErrorInvalidValue")


def _direction(to: Place, of: Place) -> str:
    if of.is_device and to.is_device:
        assert of.allocation is not None
        assert to.allocation is not None
        return "D2D" if of.allocation.device == to.allocation.device else "P2P"
    return f"{'D' if of.is_device else 'H'}2{'D' if to.is_device else 'H'}"
