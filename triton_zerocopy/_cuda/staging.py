"""`Staging`: host arrays to and from the GPU, through pinned memory.

The GPU copies by itself only from and to pinned memory. Arrays are copied there in blocks, by
a few threads of this module, while the GPU moves the blocks before: a block is on its way, the
next one is filled. The threads make no CUDA calls; they leave them to the device's thread.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, Protocol

import numpy as np

from .._datatypes import Array
from .._errors import CudaError
from . import cudart
from .countdown import Countdown
from .streams import Streams

BLOCK: Final = 4 << 20
"""Bytes that are moved in one go: enough to hide what a step costs."""

SMALL: Final = 64 << 10
"""Up to so many bytes CUDA takes a copy of any host memory itself, at once."""

_BLOCKS: Final = 8
_THREADS: Final = max(1, min(4, (os.cpu_count() or 2) - 1))
_POLL: Final = 1.0  # seconds, between two looks whether the process ends


class Host(Protocol):
    """The `Device` that this belongs to."""

    streams: Streams
    is_stopped: bool

    def post(self, job: Callable[[], None]) -> None: ...


class Staging:
    """The pinned blocks of one device, and the threads that fill and empty them."""

    def __init__(self, device: Host) -> None:
        self._device = device
        self._threads: ThreadPoolExecutor | None = None
        self._free: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
        self._made: list[int] = []
        self._wanted = 0
        self._lock = threading.Lock()

    # In the device's thread

    def upload(self, target: int, source: Array, stream: int, count: Countdown) -> None:
        """Queue copying a host array to ``byte_size`` bytes of device memory at ``target``."""
        if not source.flags.c_contiguous or not source.dtype.isnative:
            self._in_thread(count, lambda: self._upload_packed(target, source, stream, count))
        elif source.nbytes <= SMALL:
            # CUDA has read it when this returns.
            cudart.copy(target, source.ctypes.data, source.nbytes, stream)
            count.more()
            self._device.streams.when_reached(stream, count.done)
        else:
            flat = source.reshape(-1).view(np.uint8)
            parts = _parts(flat.nbytes)
            for _ in range(min(_THREADS, -(-flat.nbytes // BLOCK))):
                self._in_thread(count, lambda: self._fill(target, flat, parts, stream, count))

    def download(self, target: Array, source: int, stream: int, count: Countdown) -> None:
        """Queue copying device memory at ``source`` to a packed host array."""
        flat = target.reshape(-1).view(np.uint8)
        parts = _parts(flat.nbytes)
        for _ in range(min(_THREADS, -(-flat.nbytes // BLOCK))):
            self._in_thread(count, lambda: self._empty(flat, source, parts, stream))

    def close(self) -> list[CudaError]:
        """Free the blocks; nothing is under way. Returns what went wrong."""
        if self._threads is not None:
            self._threads.shutdown(wait=True)
        problems = []
        while self._made:
            try:
                cudart.free_host(self._made.pop())
            except CudaError as error:
                problems.append(error)
        return problems

    def _send(self, address: int, block: int, size: int, stream: int, count: Countdown) -> None:
        count.more()

        def sent(error: BaseException | None) -> None:
            self._free.put(block)
            count.done(error)

        try:
            cudart.copy(address, block, size, stream)
            self._device.streams.when_reached(stream, sent)
        except CudaError as error:
            sent(error)

    def _make_block(self) -> None:
        try:
            address = cudart.malloc_host(BLOCK)
        except CudaError as error:
            with self._lock:
                self._wanted -= 1
            self._free.put(error)
        else:
            self._made.append(address)
            self._free.put(address)

    def _in_thread(self, count: Countdown, work: Callable[[], None]) -> None:
        """Run work in one of the threads; ``count`` waits for it."""
        count.more()

        def run() -> None:
            problem: BaseException | None = None
            try:
                work()
            except BaseException as error:  # noqa: BLE001 # the waiter's
                problem = error
            self._device.post(lambda: count.done(problem))

        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, "triton_zerocopy staging")
        self._threads.submit(run)

    # In the threads

    def _upload_packed(self, target: int, source: Array, stream: int, count: Countdown) -> None:
        packed = np.ascontiguousarray(source, source.dtype.newbyteorder("="))
        # It runs before this thread is counted as done: jobs are run in order.
        self._device.post(lambda: count.guard(lambda: self.upload(target, packed, stream, count)))

    def _fill(
        self,
        target: int,
        source: Array,
        parts: Iterator[tuple[int, int]],
        stream: int,
        count: Countdown,
    ) -> None:
        for start, size in parts:
            block = self._take()
            _view(block, size)[:] = source[start : start + size]
            address = target + start
            self._device.post(partial(self._send, address, block, size, stream, count))

    def _empty(
        self, target: Array, source: int, parts: Iterator[tuple[int, int]], stream: int
    ) -> None:
        # The GPU fills one block while the one before is emptied.
        before: _Fetch | None = None
        try:
            for start, size in parts:
                fetch = _Fetch(start, size, self._take())
                self._device.post(partial(self._fetch, source, fetch, stream))
                before, fetch_before = fetch, before
                if fetch_before is not None:
                    self._store(target, fetch_before)
        finally:
            if before is not None:
                self._store(target, before)

    def _fetch(self, source: int, fetch: _Fetch, stream: int) -> None:
        """In the device's thread: have the GPU fill a block."""
        try:
            cudart.copy(fetch.block, source + fetch.start, fetch.size, stream)
            self._device.streams.when_reached(stream, fetch.done)
        except CudaError as error:
            fetch.done(error)

    def _store(self, target: Array, fetch: _Fetch) -> None:
        try:
            self._wait(fetch.is_there)
            if fetch.error is not None:
                raise fetch.error
            target[fetch.start : fetch.start + fetch.size] = _view(fetch.block, fetch.size)
        finally:
            self._free.put(fetch.block)

    def _take(self) -> int:
        try:
            found = self._free.get_nowait()
        except queue.Empty:
            with self._lock:
                is_short = self._wanted < _BLOCKS
                self._wanted += is_short
            if is_short:
                self._device.post(self._make_block)
            while True:
                try:
                    found = self._free.get(timeout=_POLL)
                    break
                except queue.Empty:
                    if self._device.is_stopped:
                        raise CudaError("the process is ending") from None
        if isinstance(found, BaseException):
            raise found
        return found

    def _wait(self, event: threading.Event) -> None:
        while not event.wait(_POLL):
            if self._device.is_stopped:
                raise CudaError("the process is ending")


class _Fetch:
    """A block that the GPU fills."""

    __slots__ = ("block", "error", "is_there", "size", "start")

    def __init__(self, start: int, size: int, block: int) -> None:
        self.start = start
        self.size = size
        self.block = block
        self.is_there = threading.Event()
        self.error: BaseException | None = None

    def done(self, error: BaseException | None) -> None:
        self.error = error
        self.is_there.set()


def _parts(byte_size: int) -> Iterator[tuple[int, int]]:
    # Of a list: several threads take from it, and a generator runs in one at a time.
    return iter([(start, min(BLOCK, byte_size - start)) for start in range(0, byte_size, BLOCK)])


def _view(address: int, byte_size: int) -> Array:
    return np.frombuffer((ctypes.c_char * byte_size).from_address(address), np.uint8)
