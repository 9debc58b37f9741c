"""The runtime's functions for memory that two processes share.

A handle is 64 bytes: what another process needs to map the same file. It means the same to the
server's half, see preload/ipc.c.
"""

# ruff: noqa: N802 # these are CUDA's names

from __future__ import annotations

import ctypes
import os
import struct

from . import _memory
from ._calls import address_of, runtime_call
from ._enums import CUDA_IPC_HANDLE_SIZE
from ._machine import Failure, machine
from ._properties import cudaIpcMemHandle_t

_HANDLE = struct.Struct("<8sQii40s")
_MAGIC = b"EMUCUDA1"


@runtime_call(1)
def cudaIpcGetMemHandle(devPtr):
    """Describe the block that the memory is part of; the server sees the block's beginning.

    Only what cudaMalloc returned can be exported, and only by the pointer that it returned.
    """
    allocation = _memory.find(address_of(devPtr))
    if allocation is None or allocation.kind != "device" or allocation.block is None:
        raise Failure("cudaErrorInvalidValue")
    if allocation.address != address_of(devPtr):
        raise Failure("cudaErrorInvalidValue")
    block = allocation.block
    physical = machine.devices[allocation.device].physical
    name = f"/{block.name}".encode()
    packed = _HANDLE.pack(_MAGIC, block.length, physical, block.owner, name)
    handle = cudaIpcMemHandle_t()
    ctypes.memmove(handle.getPtr(), packed, CUDA_IPC_HANDLE_SIZE)
    return (handle,)


@runtime_call(1)
def cudaIpcOpenMemHandle(handle, flags):
    """The exporter itself may not; another device only as a peer; again is one more reference."""
    packed = ctypes.string_at(handle.getPtr(), CUDA_IPC_HANDLE_SIZE)
    magic, length, physical, owner, path = _HANDLE.unpack(packed)
    name = path.rstrip(b"\0").decode("latin-1").removeprefix("/")
    if magic != _MAGIC or not name.startswith("emucuda."):
        raise Failure("cudaErrorInvalidResourceHandle")
    if owner == os.getpid():
        raise Failure("cudaErrorDeviceUninitialized")
    device = next((n for n, d in enumerate(machine.devices) if d.physical == physical), None)
    if device is None:
        raise Failure("cudaErrorInvalidDevice")
    if device != machine.current and not machine.can_access_peer(machine.current, device):
        raise Failure("cudaErrorPeerAccessUnsupported")
    allocation = _memory.imported(name)
    if allocation is None:
        allocation = _memory.map_imported(name, length, device)
    else:
        allocation.references += 1
    return (allocation.address,)


@runtime_call()
def cudaIpcCloseMemHandle(devPtr):
    """Waits for nothing; work that still needs the memory ends in an illegal address."""
    error = "cudaErrorInvalidValue"
    allocation = _memory.allocation_at(address_of(devPtr), "imported", error=error)
    allocation.references -= 1
    if allocation.references == 0:
        _memory.free(allocation)
