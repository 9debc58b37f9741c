"""The structures that the emulated runtime returns."""

# ruff: noqa: N801, N802, N815 # these are CUDA's names

from __future__ import annotations

import ctypes
import dataclasses

from ._enums import CUDA_IPC_HANDLE_SIZE, cudaMemoryType
from ._machine import Device, machine


class cudaUUID_t:
    def __init__(self, value: bytes) -> None:
        self.bytes = value


class cudaDeviceProp:
    """The few properties that anybody asks for."""

    def __init__(self, device: Device) -> None:
        self.name = b"Emulated GPU"
        self.uuid = cudaUUID_t(device.uuid)
        self.totalGlobalMem = device.total
        self.major, self.minor = 9, 0
        self.integrated = 0
        self.unifiedAddressing = 1
        self.pciBusID = device.physical + 1
        self.pciDeviceID = self.pciDomainID = 0


@dataclasses.dataclass
class cudaPointerAttributes:
    type: cudaMemoryType
    device: int
    devicePointer: int
    hostPointer: int


class cudaIpcMemHandle_t:
    """64 bytes, to be reached by their address; `reserved` is gone since cuda-python 13.4."""

    def __init__(self) -> None:
        self._bytes = ctypes.create_string_buffer(CUDA_IPC_HANDLE_SIZE)

    def getPtr(self) -> int:
        return ctypes.addressof(self._bytes)

    @property
    def reserved(self) -> bytes:
        _check_has_reserved()
        return self._bytes.raw

    @reserved.setter
    def reserved(self, value: bytes) -> None:
        _check_has_reserved()
        ctypes.memmove(self._bytes, bytes(value), CUDA_IPC_HANDLE_SIZE)


def _check_has_reserved() -> None:
    if machine.runtime_version >= 13000:
        raise AttributeError("'cudaIpcMemHandle_t' object has no attribute 'reserved'")
