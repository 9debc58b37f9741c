"""Memory of every kind that CUDA has, made by cuda-python or by what stands in its place."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys

GRANULE = 2 << 20


def runtime():
    return importlib.import_module("cuda.bindings.runtime")


def driver():
    return importlib.import_module("cuda.bindings.driver")


def ok(result):
    """Return what a call returned besides its status, which must be success."""
    status, *values = result
    assert status == 0, status
    return values[0] if len(values) == 1 else tuple(values)


class Memory:
    """Memory of one kind, which lends itself as an FP32 tensor. A context manager.

    Args:
        kind: ``"device"`` (cudaMalloc), ``"managed"``, ``"pool"`` (cudaMallocAsync), ``"vmm"``
            (cuMemMap, as torch's expandable segments) or ``"pinned"``.
        byte_size: bytes in it.
    """

    def __init__(self, kind, byte_size):
        self.kind = kind
        self.byte_size = byte_size
        self.address = 0

    def __enter__(self):
        self._end = contextlib.ExitStack()
        self.address = int(getattr(self, f"_make_{self.kind}")())
        return self

    def __exit__(self, *exc_info):
        self._end.close()

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": (self.byte_size // 4,),
            "typestr": "<f4",
            "data": (self.address, False),
            "version": 3,
            "stream": None,
        }

    def fill(self, byte):
        """Set all bytes, and wait for that."""
        ok(runtime().cudaMemsetAsync(self.address, byte, self.byte_size, 1))
        ok(runtime().cudaStreamSynchronize(1))

    def numpy(self, byte_size=None):
        """Copy the first bytes to the host."""
        count = self.byte_size if byte_size is None else byte_size
        target = (ctypes.c_uint8 * count)()
        kind = runtime().cudaMemcpyKind.cudaMemcpyDefault
        ok(runtime().cudaMemcpyAsync(ctypes.addressof(target), self.address, count, kind, 1))
        ok(runtime().cudaStreamSynchronize(1))
        return bytes(target)

    def _make_device(self):
        address = ok(runtime().cudaMalloc(self.byte_size))
        self._end.callback(lambda: ok(runtime().cudaFree(address)))
        return address

    def _make_pinned(self):
        address = ok(runtime().cudaHostAlloc(self.byte_size, runtime().cudaHostAllocPortable))
        self._end.callback(lambda: ok(runtime().cudaFreeHost(address)))
        return address

    def _make_managed(self):
        if is_emulated():
            return self._emulated()
        flags = runtime().cudaMemAttachGlobal
        address = ok(runtime().cudaMallocManaged(self.byte_size, flags))
        self._end.callback(lambda: ok(runtime().cudaFree(address)))
        return address

    def _make_pool(self):
        if is_emulated():
            return self._emulated()
        address = ok(runtime().cudaMallocAsync(self.byte_size, 1))
        ok(runtime().cudaStreamSynchronize(1))
        self._end.callback(lambda: ok(runtime().cudaStreamSynchronize(1)))
        self._end.callback(lambda: ok(runtime().cudaFreeAsync(address, 1)))
        return address

    def _make_vmm(self):
        if is_emulated():
            return self._emulated()
        cu = driver()
        on_gpu = cu.CUmemAllocationProp()
        on_gpu.type = cu.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        on_gpu.location.type = cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        on_gpu.location.id = 0
        size = -(-self.byte_size // GRANULE) * GRANULE
        handle = ok(cu.cuMemCreate(size, on_gpu, 0))
        self._end.callback(lambda: ok(cu.cuMemRelease(handle)))
        address = ok(cu.cuMemAddressReserve(size, 0, 0, 0))
        self._end.callback(lambda: ok(cu.cuMemAddressFree(address, size)))
        ok(cu.cuMemMap(address, size, 0, handle, 0))
        self._end.callback(lambda: ok(cu.cuMemUnmap(address, size)))
        access = cu.CUmemAccessDesc()
        access.location = on_gpu.location
        access.flags = cu.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        ok(cu.cuMemSetAccess(address, size, [access], 1))
        return address

    def _emulated(self):
        emulated = sys.modules["emulated_cuda"]
        address = emulated.allocate(self.byte_size, self.kind)
        self._end.callback(lambda: emulated.release(address))
        return address


def is_emulated():
    """Tell whether it is the emulation that calls itself cuda-python at the moment."""
    emulated = sys.modules.get("emulated_cuda")
    return emulated is not None and emulated.runtime is runtime()
