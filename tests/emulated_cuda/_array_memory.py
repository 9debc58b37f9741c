"""Streams and memory of the array library, see `emulated_cuda.arrays`."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from . import _control, _memory, _streams, runtime
from ._lock import exclusive
from ._machine import ARRAYS, on_behalf_of

_LEGACY = runtime.cudaStreamLegacy
_current = threading.local()


class Stream:
    """A stream of one GPU, destroyed when nobody holds it any more."""

    def __init__(self, device: int = 0, *, is_blocking: bool = False) -> None:
        flags = runtime.cudaStreamDefault if is_blocking else runtime.cudaStreamNonBlocking
        with on_device(device):
            self.handle = int(ok(runtime.cudaStreamCreateWithFlags(flags)))
        self.device = device
        weakref.finalize(self, _destroy_stream, self.handle).atexit = False

    def __int__(self) -> int:
        return self.handle

    def synchronize(self) -> None:
        """Wait for all that was queued here."""
        with on_device(self.device):
            ok(runtime.cudaStreamSynchronize(self.handle))

    def wait(self, other: Stream | int) -> None:
        """Let what is queued from now on wait for what is queued in another stream now."""
        device = other.device if isinstance(other, Stream) else self.device
        make_wait(self.handle, int(other), device)


@contextlib.contextmanager
def current_stream(stream: Stream | int, device: int | None = None) -> Iterator[None]:
    """Let a stream be the current one of its GPU, in this thread, to the end of the block.

    Args:
        stream: a stream; or a handle, as 1 (legacy default) or 2 (per-thread default).
        device: the GPU, for a handle.
    """
    device = stream.device if isinstance(stream, Stream) else device or 0
    streams = _current.__dict__.setdefault("streams", {})
    before = streams.get(device, _LEGACY)
    streams[device] = int(stream)
    try:
        yield
    finally:
        streams[device] = before


def current_handle(device: int = 0) -> int:
    """Return the handle of a GPU's current stream in this thread; 1 if nothing was said."""
    return _current.__dict__.setdefault("streams", {}).get(device, _LEGACY)


class Storage:
    """Memory of a tensor; it goes back in the order of the stream that it was made for."""

    def __init__(self, byte_size: int, device: int, kind: str) -> None:
        self.device, self.kind = device, kind
        with on_device(device):
            if kind == "device":
                self.address = ok(runtime.cudaMalloc(max(1, byte_size)))
            else:
                self.address = _control.allocate(max(1, byte_size), kind, device)
            with exclusive():
                stream = _streams.find_stream(current_handle(device))
                allocation = _memory.find(self.address)
        weakref.finalize(self, _free_in_order, allocation, stream).atexit = False


class Borrowed:
    """Memory of somebody else, given back when the last tensor over it is gone."""

    def __init__(self, address: int, device: int, kind: str, lender: object) -> None:
        self.address, self.device, self.kind = address, device, kind
        self._lender = lender
        if callable(lender):
            weakref.finalize(self, lender).atexit = False


@contextlib.contextmanager
def on_device(device: int) -> Iterator[None]:
    """Let a device be current in this thread, on behalf of the arrays."""
    with on_behalf_of(ARRAYS):
        before = ok(runtime.cudaGetDevice())
        ok(runtime.cudaSetDevice(device))
        try:
            yield
        finally:
            runtime.cudaSetDevice(before)


def make_wait(waiting: int, stream: int, device: int) -> None:
    """Let a stream wait for what is in another now."""
    with on_device(device):
        event = ok(runtime.cudaEventCreateWithFlags(runtime.cudaEventDisableTiming))
        ok(runtime.cudaEventRecord(event, stream))
        ok(runtime.cudaStreamWaitEvent(waiting, event, runtime.cudaEventWaitDefault))
        ok(runtime.cudaEventDestroy(event))


def ok(result: tuple[Any, ...]) -> Any:
    error, *values = result
    if error != runtime.cudaError_t.cudaSuccess:
        raise RuntimeError(f"the array library got {error.name}")
    return values[0] if values else None


def _destroy_stream(handle: int) -> None:
    with on_behalf_of(ARRAYS):
        runtime.cudaStreamDestroy(handle)


def _free_in_order(allocation: _memory.Allocation, stream: _streams.Stream) -> None:
    """Free memory once its own stream is through with it, as caching allocators do.

    Nothing waits. Work in other streams that still needs the memory ends in an illegal address:
    who borrows it must keep the tensor until then.
    """
    with exclusive():
        if not allocation.is_alive:
            return
        if stream.operations:
            stream.push(lambda: allocation.is_alive and _memory.free(allocation))
        else:
            _memory.free(allocation)
