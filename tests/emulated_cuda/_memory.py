"""Allocations of the emulated machine.

Device memory is a file in /dev/shm, so that the server can map it, too. The pointer handed out
is a mapping without any access: dereferencing it on the host is a SIGSEGV. Copies and kernels go
through a second mapping of the same file.

The driver hands memory out in blocks of 2 MiB. A small allocation is a part of a block that it
shares with others, and what IPC exports is always the block: two small allocations have the same
handle, and the importer gets the address of the block's beginning.
"""

from __future__ import annotations

import atexit
import bisect
import contextlib
import dataclasses
import os
from typing import Literal

from . import _mapping
from ._machine import Failure, machine, origin

GRANULARITY = 2 << 20
_SMALL = 1 << 20  # up to here, allocations share blocks
_ALIGNMENT = 512
_PAGE = 4096

Kind = Literal["device", "imported", "host", "managed", "pool", "vmm"]


class Block:
    """What the driver hands out at once, and what IPC shares.

    Attributes:
        name: its file's.
        length: bytes, whole granules.
        owner: the process that made it.
        address: where it seems to be.
        visible: where the host can reach it.
    """

    def __init__(self, device: int, length: int) -> None:
        self.device = device
        self.length = length
        self.parts: dict[int, Allocation] = {}
        self._cursor = 0
        self._freed: dict[int, list[int]] = {}
        self.owner = os.getpid()
        self.name = f"emucuda.{self.owner}.p{next(machine.numbers)}"
        file = _mapping.create_file(self.name, length)
        try:
            self.visible = _mapping.map_visible(length, file)
            freed = _addresses.get(length) if machine.reuses_addresses else None
            self.address = _mapping.map_hidden(length, file, freed.pop() if freed else None)
        finally:
            os.close(file)
        machine.devices[device].used += length

    def take(self, size: int) -> int | None:
        """Return the offset of a free part of this size, if there is one."""
        rounded = -(-size // _ALIGNMENT) * _ALIGNMENT
        if machine.reuses_addresses and self._freed.get(rounded):
            return self._freed[rounded].pop()
        if self._cursor + rounded > self.length:
            return None
        offset, self._cursor = self._cursor, self._cursor + rounded
        return offset

    def give_back(self, part: Allocation) -> None:
        """Take a part out of use, and let the memory go with the last one."""
        offset = part.address - self.address
        del self.parts[offset]
        rounded = -(-part.size // _ALIGNMENT) * _ALIGNMENT
        self._freed.setdefault(rounded, []).append(offset)
        if not self.parts:
            self._free()

    def _free(self) -> None:
        _mapping.unmap(self.visible, self.length)
        # A pointer that is used after its memory was freed points nowhere, for ever.
        _mapping.reserve(self.address, self.length)
        _addresses.setdefault(self.length, []).append(self.address)
        if self.device < len(machine.devices):
            machine.devices[self.device].used -= self.length
        _blocks.remove(self)
        self.remove_file()

    def remove_file(self) -> None:
        # A forked child has the names, but they are not its own.
        if os.getpid() == self.owner:
            _mapping.remove_file(self.name)


@dataclasses.dataclass(eq=False)
class Allocation:
    """A piece of memory that CUDA knows.

    Attributes:
        address: where it seems to be; the host sees it there only if it is host memory.
        visible: where the host can reach it.
        size: bytes that were asked for; what reaches beyond is refused.
        kind: where it came from.
        device: ordinal of the GPU; for host memory that which was current.
        buffer_id: the number of the allocation, never given again.
        mapped: bytes to unmap, for memory that is not part of a block.
    """

    address: int
    visible: int
    size: int
    kind: Kind
    device: int
    buffer_id: int = dataclasses.field(default_factory=lambda: next(machine.numbers))
    block: Block | None = None
    mapped: int = 0
    name: str = ""
    references: int = 1
    is_alive: bool = True
    origin: str = dataclasses.field(default_factory=origin)

    @property
    def is_host(self) -> bool:
        """Whether the host can dereference the pointer."""
        return self.kind in ("host", "managed")


_blocks: list[Block] = []
_allocations: dict[int, Allocation] = {}
_sorted: list[int] = []
_addresses: dict[int, list[int]] = {}  # reserved ones, by length


def allocate(size: int, device: int, kind: Kind = "device") -> Allocation:
    """Allocate memory of a GPU.

    Raises:
        Failure: the GPU has not so much left.
    """
    _check_room(device, size, kind)
    if kind == "managed":
        return _add(_anonymous(size, kind, device))
    # Only what cudaMalloc makes shares blocks.
    shared = [b for b in _blocks if b.device == device] if size <= _SMALL else []
    for block in shared if kind == "device" else ():
        is_shared = all(p.kind == "device" and p.size <= _SMALL for p in block.parts.values())
        if is_shared and (offset := block.take(size)) is not None:
            return _part(block, offset, size, kind)
    block = Block(device, -(-size // GRANULARITY) * GRANULARITY)
    _blocks.append(block)
    offset = block.take(size)
    assert offset is not None
    return _part(block, offset, size, kind)


def allocate_host(size: int, device: int) -> Allocation:
    """Allocate pinned memory."""
    if machine.host_used + size > machine.host_total:
        raise Failure("cudaErrorMemoryAllocation")
    machine.host_used += size
    return _add(_anonymous(size, "host", device))


def map_imported(name: str, length: int, device: int) -> Allocation:
    """Map the memory of another process."""
    try:
        file = _mapping.open_file(name)
    except OSError:
        raise Failure("cudaErrorInvalidResourceHandle") from None
    try:
        if os.fstat(file).st_size < length:
            raise Failure("cudaErrorInvalidResourceHandle")
        visible = _mapping.map_visible(length, file)
        address = _mapping.map_hidden(length, file)
    finally:
        os.close(file)
    return _add(Allocation(address, visible, length, "imported", device, mapped=length, name=name))


def free(allocation: Allocation) -> None:
    """Take an allocation away, at once."""
    allocation.is_alive = False
    del _allocations[allocation.address]
    _sorted.remove(allocation.address)
    if allocation.block is not None:
        allocation.block.give_back(allocation)
        return
    _mapping.unmap(allocation.visible, allocation.mapped)
    if allocation.visible != allocation.address:
        _mapping.unmap(allocation.address, allocation.mapped)
    if allocation.kind == "host":
        machine.host_used -= allocation.size


def find(address: int) -> Allocation | None:
    """Return the allocation that an address lies in."""
    index = bisect.bisect_right(_sorted, address) - 1
    if index < 0:
        return None
    allocation = _allocations[_sorted[index]]
    return allocation if address < allocation.address + allocation.size else None


def allocation_at(
    address: int, *kinds: str, error: str = "cudaErrorInvalidDevicePointer"
) -> Allocation:
    """Return the allocation that begins at an address, or raise."""
    allocation = find(address)
    if allocation is None or allocation.address != address or allocation.kind not in kinds:
        raise Failure(error)
    return allocation


def imported(name: str) -> Allocation | None:
    """Return the allocation of another process's file, if it is mapped already."""
    return next((a for a in allocations() if a.kind == "imported" and a.name == name), None)


def allocations() -> list[Allocation]:
    return list(_allocations.values())


def is_reserved(address: int) -> bool:
    """Tell whether an address was one of device memory that has been freed."""
    return any(a <= address < a + length for length, each in _addresses.items() for a in each)


def release_addresses() -> None:
    """Give back the addresses that nothing was to use again."""
    for length, addresses in _addresses.items():
        for address in addresses:
            _mapping.unmap(address, length)
    _addresses.clear()


def _check_room(device: int, size: int, kind: Kind) -> None:
    there = machine.devices[device]
    # A small allocation may need no new block, but to be refused a little early does no harm.
    if there.used + size > there.total:
        raise Failure("cudaErrorMemoryAllocation")


def _part(block: Block, offset: int, size: int, kind: Kind) -> Allocation:
    allocation = Allocation(
        block.address + offset, block.visible + offset, size, kind, block.device, block=block
    )
    block.parts[offset] = allocation
    return _add(allocation)


def _anonymous(size: int, kind: Kind, device: int) -> Allocation:
    length = -(-size // _PAGE) * _PAGE
    address = _mapping.map_visible(length)
    return Allocation(address, address, size, kind, device, mapped=length)


def _add(allocation: Allocation) -> Allocation:
    _allocations[allocation.address] = allocation
    bisect.insort(_sorted, allocation.address)
    return allocation


@atexit.register
def _remove_files() -> None:
    for block in _blocks:
        with contextlib.suppress(OSError):
            block.remove_file()


_mapping.sweep()
