"""Stands for `cuda.bindings.driver`: the few functions that the runtime has nothing for."""

# ruff: noqa: N802 # these are CUDA's names

from __future__ import annotations

from . import _memory
from ._calls import Handle, Pointer, address_of, driver_call
from ._enums import CUmemorytype, CUpointer_attribute, CUresult
from ._machine import Failure, machine
from ._memory import Allocation

__all__ = ["CUmemorytype", "CUpointer_attribute", "CUresult"]

_POOL = 0xB001
_ATTRIBUTE = "CU_POINTER_ATTRIBUTE_"


class CUdeviceptr(Pointer):
    pass


class CUmemoryPool(Handle):
    pass


class CUstream(Handle):
    pass


class CUevent(Handle):
    pass


@driver_call(pure=True)
def cuInit(Flags):
    if not machine.devices:
        raise Failure("CUDA_ERROR_NO_DEVICE")
    machine.is_initialized = True


@driver_call(1, pure=True)
def cuGetErrorName(error):
    return (CUresult(error.value).name.encode(),)


@driver_call(1, pure=True)
def cuGetErrorString(error):
    return (b"emulated: " + CUresult(error.value).name.encode(),)


@driver_call(2, context=True)
def cuMemGetAddressRange(dptr):
    """The allocation that a pointer lies in, as it was asked for: a part of a block is one."""
    allocation = _memory.find(address_of(dptr))
    if allocation is None or allocation.kind == "host":
        raise Failure("CUDA_ERROR_INVALID_VALUE")
    return CUdeviceptr(allocation.address), allocation.size


@driver_call(1)
def cuPointerGetAttribute(attribute, ptr):
    allocation = _memory.find(address_of(ptr))
    if allocation is None:
        raise Failure("CUDA_ERROR_INVALID_VALUE")
    name = CUpointer_attribute(attribute.value).name.removeprefix(_ATTRIBUTE)
    if name not in _READERS:
        raise Failure("CUDA_ERROR_NOT_SUPPORTED")
    return (_READERS[name](allocation),)


def _memory_type(allocation: Allocation) -> int:
    # cuda-python returns a plain int here.
    kinds = CUmemorytype
    return int(
        kinds.CU_MEMORYTYPE_HOST if allocation.kind == "host" else kinds.CU_MEMORYTYPE_DEVICE
    )


_READERS = {
    "MEMORY_TYPE": _memory_type,
    "BUFFER_ID": lambda allocation: allocation.buffer_id,
    "IS_MANAGED": lambda allocation: allocation.kind == "managed",
    "DEVICE_ORDINAL": lambda allocation: allocation.device,
    # What was imported cannot be exported again.
    "IS_LEGACY_CUDA_IPC_CAPABLE": lambda allocation: allocation.kind == "device",
    "RANGE_START_ADDR": lambda allocation: CUdeviceptr(allocation.address),
    "RANGE_SIZE": lambda allocation: allocation.size,
    "MAPPED": lambda allocation: True,
    "MEMPOOL_HANDLE": lambda allocation: CUmemoryPool(_POOL if allocation.kind == "pool" else 0),
}
