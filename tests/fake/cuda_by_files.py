"""As much of cuda.bindings.runtime as FakeTriton calls, over files in place of device memory.

A handle is the name of a file in /dev/shm. Its file is the "device memory", mapped by whoever
opens the handle; device 1 is not there.
"""

from __future__ import annotations

import ctypes
import enum
import mmap
import os

_SUCCESS, _BAD_DEVICE, _BAD_HANDLE = 0, 101, 400
_open = {}
_chosen = [0]


class cudaMemcpyKind(enum.IntEnum):  # noqa: N801
    cudaMemcpyHostToDevice = 1  # noqa: N815
    cudaMemcpyDeviceToHost = 2  # noqa: N815


class cudaIpcMemHandle_t:  # noqa: N801
    def __init__(self):
        self.bytes = ctypes.create_string_buffer(64)

    def getPtr(self):  # noqa: N802
        return ctypes.addressof(self.bytes)


def cudaSetDevice(device):  # noqa: N802
    _chosen[:] = [device]
    return (_SUCCESS if device == 0 else _BAD_DEVICE,)


def cudaIpcOpenMemHandle(handle, _flags):  # noqa: N802
    name = handle.bytes.raw.rstrip(b"\0").decode("ascii", "replace")
    path = f"/dev/shm/{name}"
    if _chosen != [0] or not name or not os.path.isfile(path):
        return _BAD_HANDLE, None
    with open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _open[address] = memory
    return _SUCCESS, address


def cudaMemcpy(target, source, byte_size, kind):  # noqa: N802
    is_device = any(
        address <= (target if kind.value == 1 else source) < address + len(memory)
        for address, memory in _open.items()
    )
    if not is_device:
        return (_BAD_HANDLE,)
    ctypes.memmove(target, source, byte_size)
    return (_SUCCESS,)


def cudaIpcCloseMemHandle(pointer):  # noqa: N802
    _open.pop(pointer)
    return (_SUCCESS,)
