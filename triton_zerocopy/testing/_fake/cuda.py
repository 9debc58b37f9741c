"""CUDA memory of a client, through a module with the call surface of cuda.bindings.runtime."""

from __future__ import annotations

import ctypes
import importlib
import sys
from typing import Any

import numpy as np

from .mappings import die
from .refusals import Refusal, invalid

HANDLE_SIZE = 64
_LAZY_PEER_ACCESS = 1


class CudaRuntime:
    """The CUDA runtime of this process, or none.

    Args:
        module: Name of a module like cuda.bindings.runtime; None for a server without a GPU.
    """

    def __init__(self, module: str | None) -> None:
        self._cuda: Any = importlib.import_module(module) if module else None

    def open(self, handle: bytes, device_id: int) -> CudaMapping:
        """Map the memory behind a handle.

        Raises:
            Refusal: The handle cannot be opened.
        """
        if self._cuda is None:
            raise _refusal("CUDA driver version is insufficient for CUDA runtime version")
        self._cuda.cudaSetDevice(device_id)  # the server does not look at its result either
        memory = self._cuda.cudaIpcMemHandle_t()
        padded = handle[:HANDLE_SIZE].ljust(HANDLE_SIZE, b"\0")
        ctypes.memmove(memory.getPtr(), padded, HANDLE_SIZE)
        error, pointer = self._cuda.cudaIpcOpenMemHandle(memory, _LAZY_PEER_ACCESS)
        if int(error):
            raise _refusal(str(error))
        return CudaMapping(self._cuda, int(pointer), device_id)


class CudaMapping:
    """Memory of another process on a device."""

    on_device = True

    def __init__(self, cuda: Any, pointer: int, device_id: int) -> None:
        self._cuda = cuda
        self._pointer = pointer
        self._device_id = device_id
        self._is_open = True

    def read(self, position: int, byte_size: int) -> bytes:
        host = np.empty(byte_size, np.uint8)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(host.ctypes.data, self._pointer + position, byte_size, kind)
        return host.tobytes()

    def write(self, position: int, data: bytes) -> None:
        host = np.frombuffer(data, np.uint8)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(self._pointer + position, host.ctypes.data, len(data), kind)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._cuda.cudaSetDevice(self._device_id)
            self._cuda.cudaIpcCloseMemHandle(self._pointer)

    def _copy(self, target: int, source: int, byte_size: int, kind: Any) -> None:
        if not self._is_open:
            die("A request touches CUDA memory that is closed.")
        self._cuda.cudaSetDevice(self._device_id)
        (error,) = self._cuda.cudaMemcpy(target, source, byte_size, kind)
        if int(error):
            die(f"A request touches CUDA memory that is not there: {error}.")


def _refusal(reason: str) -> Refusal:
    # The reason is for the log only, as Triton has it.
    sys.stderr.write(f"failed to open CUDA IPC handle: {reason}\n")
    sys.stderr.flush()
    return invalid("failed to register shared memory region: invalid args")
