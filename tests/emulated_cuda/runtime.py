"""Stands for `cuda.bindings.runtime`.

Functions take and return what those of cuda-python do: a tuple that begins with the error.
"""

# ruff: noqa: N801, N802 # these are CUDA's names

from __future__ import annotations

from typing import Any

from . import _copies, _memory, _streams
from ._calls import Handle, address_of, check_driver_is_found, handle_of, runtime_call
from ._enums import (
    CUDA_IPC_HANDLE_SIZE,
    cudaError_t,
    cudaEventDefault,
    cudaEventDisableTiming,
    cudaEventWaitDefault,
    cudaHostAllocDefault,
    cudaHostAllocPortable,
    cudaInvalidDeviceId,
    cudaIpcMemLazyEnablePeerAccess,
    cudaMemcpyKind,
    cudaMemoryType,
    cudaStreamDefault,
    cudaStreamLegacy,
    cudaStreamNonBlocking,
    cudaStreamPerThread,
)
from ._ipc import cudaIpcCloseMemHandle, cudaIpcGetMemHandle, cudaIpcOpenMemHandle
from ._machine import Failure, machine, origin
from ._properties import cudaDeviceProp, cudaIpcMemHandle_t, cudaPointerAttributes, cudaUUID_t

__all__ = [
    "CUDA_IPC_HANDLE_SIZE",
    "cudaDeviceProp",
    "cudaError_t",
    "cudaEventDefault",
    "cudaEventDisableTiming",
    "cudaEventWaitDefault",
    "cudaHostAllocDefault",
    "cudaHostAllocPortable",
    "cudaInvalidDeviceId",
    "cudaIpcCloseMemHandle",
    "cudaIpcGetMemHandle",
    "cudaIpcMemHandle_t",
    "cudaIpcMemLazyEnablePeerAccess",
    "cudaIpcOpenMemHandle",
    "cudaMemcpyKind",
    "cudaMemoryType",
    "cudaPointerAttributes",
    "cudaStreamDefault",
    "cudaStreamLegacy",
    "cudaStreamNonBlocking",
    "cudaStreamPerThread",
    "cudaUUID_t",
]


class cudaStream_t(Handle):
    pass


class cudaEvent_t(Handle):
    pass


# Versions and errors


@runtime_call(1, context=False, pure=True)
def cudaDriverGetVersion():
    check_driver_is_found()
    return (machine.driver_version if machine.has_driver else 0,)


@runtime_call(1, context=False, pure=True)
def cudaRuntimeGetVersion():
    return (machine.runtime_version,)


@runtime_call(1, context=False, pure=True)
def cudaGetErrorName(error):
    return (cudaError_t(error.value).name.encode(),)


@runtime_call(1, context=False, pure=True)
def cudaGetErrorString(error):
    return (b"emulated: " + cudaError_t(error.value).name.encode(),)


def cudaGetLastError():
    """The calling thread's last error, once. A "not ready" is none."""
    return (cudaError_t.named(machine.take_last_error()),)


# Devices


@runtime_call(1, context=False)
def cudaGetDeviceCount():
    return (len(machine.devices),)


@runtime_call(1, context=False)
def cudaGetDevice():
    return (machine.current,)


@runtime_call(context=False)
def cudaSetDevice(device):
    """Since CUDA 12 this makes the device's context, too."""
    machine.device(device)
    machine.current = device
    machine.enter_context()


@runtime_call(1, context=False)
def cudaGetDeviceProperties(device):
    return (cudaDeviceProp(machine.device(device)),)


@runtime_call(1, context=False)
def cudaDeviceCanAccessPeer(device, peerDevice):
    machine.device(device)
    machine.device(peerDevice)
    return (int(machine.can_access_peer(device, peerDevice)),)


@runtime_call()
def cudaDeviceSynchronize():
    _streams.wait_for_device(machine.current)


@runtime_call(2)
def cudaMemGetInfo():
    device = machine.device(machine.current)
    return max(0, device.total - device.used), device.total


# Memory


@runtime_call(1)
def cudaMalloc(size):
    return (_memory.allocate(size, machine.current).address if size else 0,)


@runtime_call()
def cudaFree(devPtr):
    """Waits for everything on the memory's GPU first, as CUDA's does."""
    address = address_of(devPtr)
    if not address:
        return
    allocation = _memory.allocation_at(address, "device", "managed", "pool")
    _streams.wait_for_device(allocation.device)
    _memory.free(allocation)


@runtime_call(1)
def cudaHostAlloc(size, flags):
    return (_memory.allocate_host(size, machine.current).address if size else 0,)


@runtime_call()
def cudaFreeHost(ptr):
    """Waits for all GPUs first: any of them may be reading or writing there."""
    address = address_of(ptr)
    if not address:
        return
    allocation = _memory.allocation_at(address, "host", error="cudaErrorInvalidValue")
    for device in range(len(machine.devices)):
        _streams.wait_for_device(device)
    _memory.free(allocation)


@runtime_call(1)
def cudaPointerGetAttributes(ptr):
    """Since CUDA 11, a pointer that CUDA does not know is no error but "unregistered"."""
    address = address_of(ptr)
    allocation = _memory.find(address)
    kinds = cudaMemoryType
    if allocation is None:
        return (cudaPointerAttributes(kinds.cudaMemoryTypeUnregistered, cudaInvalidDeviceId, 0, 0),)
    kind = {"host": kinds.cudaMemoryTypeHost, "managed": kinds.cudaMemoryTypeManaged}.get(
        allocation.kind, kinds.cudaMemoryTypeDevice
    )
    on_host = address if allocation.is_host else 0
    return (cudaPointerAttributes(kind, allocation.device, address, on_host),)


# Copies


@runtime_call()
def cudaMemcpyAsync(dst, src, count, kind, stream):
    kind = cudaMemcpyKind(kind.value)
    _copies.copy(address_of(dst), count, address_of(src), count, count, 1, kind, _stream(stream))


@runtime_call()
def cudaMemcpy2DAsync(dst, dpitch, src, spitch, width, height, kind, stream):
    kind = cudaMemcpyKind(kind.value)
    if width > dpitch or width > spitch:
        raise Failure("cudaErrorInvalidPitchValue")
    _copies.copy(
        address_of(dst), dpitch, address_of(src), spitch, width, height, kind, _stream(stream)
    )


@runtime_call()
def cudaMemcpyPeerAsync(dst, dstDevice, src, srcDevice, count, stream):
    """Works with and without peer access: the driver takes the way over the host then."""
    machine.device(dstDevice)
    machine.device(srcDevice)
    queue = _stream(stream)
    if count == 0:
        return
    _copies.check_on_device(address_of(dst), dstDevice)
    _copies.check_on_device(address_of(src), srcDevice)
    kind = cudaMemcpyKind.cudaMemcpyDeviceToDevice
    _copies.copy(address_of(dst), count, address_of(src), count, count, 1, kind, queue)


@runtime_call()
def cudaMemsetAsync(devPtr, value, count, stream):
    queue = _stream(stream)
    _check_current(queue.device)
    _copies.fill(address_of(devPtr), value, count, queue)


# Streams and events


@runtime_call(1)
def cudaStreamCreateWithFlags(flags):
    if flags not in (cudaStreamDefault, cudaStreamNonBlocking):
        raise Failure("cudaErrorInvalidValue")
    is_blocking = flags == cudaStreamDefault
    handle = _streams.create_stream(machine.current, is_blocking=is_blocking, origin=origin())
    return (cudaStream_t(handle),)


@runtime_call()
def cudaStreamDestroy(stream):
    _streams.destroy_stream(handle_of(stream))


@runtime_call()
def cudaStreamQuery(stream):
    queue = _stream(stream)
    _streams.poll(queue, queue.last)


@runtime_call()
def cudaStreamSynchronize(stream):
    _streams.wait_for(_stream(stream).last)


@runtime_call()
def cudaStreamWaitEvent(stream, event, flags):
    """An event that was never recorded is no reason to wait. Streams of any device may wait."""
    queue = _stream(stream)
    pending = _streams.find_event(handle_of(event)).pending
    if pending:
        queue.push(after=pending)


@runtime_call(1)
def cudaEventCreateWithFlags(flags):
    handle = _streams.registry.new_handle()
    _streams.registry.events[handle] = _streams.Event(handle, machine.current, origin())
    return (cudaEvent_t(handle),)


@runtime_call()
def cudaEventDestroy(event):
    """Who waits for it goes on waiting, as in CUDA."""
    handle = handle_of(event)
    _streams.find_event(handle)
    del _streams.registry.events[handle]


@runtime_call()
def cudaEventRecord(event, stream):
    found = _streams.find_event(handle_of(event))
    queue = _stream(stream)
    if found.device != queue.device:
        raise Failure("cudaErrorInvalidResourceHandle")
    found.operation = queue.push()
    found.polls = 0


@runtime_call()
def cudaEventQuery(event):
    found = _streams.find_event(handle_of(event))
    _streams.poll(found, found.pending)


@runtime_call()
def cudaEventSynchronize(event):
    _streams.wait_for(_streams.find_event(handle_of(event)).pending)


def _stream(value: Any) -> _streams.Stream:
    return _streams.find_stream(handle_of(value))


def _check_current(device: int) -> None:
    """Kernels, unlike copies, need the stream's device to be the current one."""
    if device != machine.current:
        raise Failure("cudaErrorInvalidResourceHandle")
