"""The emulated CUDA's streams: nothing in them happens before it must."""

from __future__ import annotations

import gc
import threading
import weakref

import emulated_cuda as emulated
import numpy as np
import pytest
from emulated_cuda import runtime as rt
from emulated_cuda.asserting import bytes_of, copy, error_of, in_thread, new_stream, ok

pytestmark = pytest.mark.once

KINDS = rt.cudaMemcpyKind


def test_nothing_happens_before_it_must(pointer, stream):
    source = np.arange(1, 5, dtype=np.uint8)
    ok(copy(pointer, source.ctypes.data, 4, stream))
    source[:] = 9  # pageable memory was read at the call
    assert bytes_of(pointer) == [0, 0, 0, 0]
    ok(rt.cudaStreamSynchronize(stream))
    assert bytes_of(pointer) == [1, 2, 3, 4]


def test_pinned_memory_is_read_and_written_by_the_stream(pointer, stream, pinned):
    address, array = pinned
    array[:4] = 1
    ok(copy(pointer, address, 4, stream))
    array[:4] = 2  # too early: the stream has not read it
    ok(copy(address + 8, pointer, 4, stream))
    assert array[8:12].tolist() == [0, 0, 0, 0]
    ok(rt.cudaStreamSynchronize(stream))
    assert bytes_of(pointer) == array[8:12].tolist() == [2, 2, 2, 2]


def test_a_pageable_target_is_complete_at_return(pointer, stream):
    ok(rt.cudaMemsetAsync(pointer, 7, 4, stream))
    target = np.zeros(4, np.uint8)
    ok(copy(target.ctypes.data, pointer, 4, stream))
    assert target.tolist() == [7, 7, 7, 7]


def test_rows_are_copied_with_their_pitches(pointer, stream):
    source = np.arange(12, dtype=np.uint8).reshape(3, 4)
    kind = KINDS.cudaMemcpyHostToDevice
    ok(rt.cudaMemcpy2DAsync(pointer, 8, source.ctypes.data, 4, 2, 3, kind, stream))
    ok(rt.cudaStreamSynchronize(stream))
    assert emulated.host_view(pointer, 24).reshape(3, 8)[:, :3].tolist() == [
        [0, 1, 0],
        [4, 5, 0],
        [8, 9, 0],
    ]
    wrong = rt.cudaMemcpy2DAsync(pointer, 1, source.ctypes.data, 4, 2, 3, kind, stream)
    assert error_of(wrong) == "InvalidPitchValue"


@pytest.mark.parametrize("what", ["stream", "event"])
def test_queries_say_not_ready_a_few_times(what, pointer, stream, emulation):
    event = ok(rt.cudaEventCreateWithFlags(rt.cudaEventDisableTiming))
    query = (lambda: rt.cudaStreamQuery(stream)) if what == "stream" else None
    query = query or (lambda: rt.cudaEventQuery(event))
    assert query() == (rt.cudaError_t.cudaSuccess,)
    for polls in (2, 5):
        emulation.set_polls(polls)
        ok(rt.cudaMemsetAsync(pointer, polls, 1, stream))
        ok(rt.cudaEventRecord(event, stream))
        assert [error_of(query()) for _ in range(polls)] == ["NotReady"] * polls
        assert ok(query()) == ()
        assert bytes_of(pointer, 1) == [polls]
    assert rt.cudaGetLastError() == (rt.cudaError_t.cudaSuccess,)
    ok(rt.cudaEventDestroy(event))
    assert error_of(rt.cudaEventQuery(event)) == "InvalidResourceHandle"


def test_a_closed_gate_holds_a_stream_up(pointer, stream, emulation):
    with emulation.hold(stream):
        ok(rt.cudaMemsetAsync(pointer, 1, 1, stream))
        assert {error_of(rt.cudaStreamQuery(stream)) for _ in range(9)} == {"NotReady"}
        emulation.settle()
        assert bytes_of(pointer, 1) == [0]
        results = []
        waiting = threading.Thread(target=lambda: results.append(rt.cudaStreamSynchronize(stream)))
        waiting.start()
    waiting.join()
    ok(results[0])
    assert bytes_of(pointer, 1) == [1]


def test_streams_are_in_order_only_where_events_say_so(pointer, stream):
    other, event = new_stream(), ok(rt.cudaEventCreateWithFlags(0))
    ok(rt.cudaMemsetAsync(pointer, 1, 4, stream))
    target = np.zeros(4, np.uint8)
    ok(copy(target.ctypes.data, pointer, 4, other))
    assert target.tolist() == [0, 0, 0, 0]  # the missing wait
    ok(rt.cudaEventRecord(event, stream))
    ok(rt.cudaStreamWaitEvent(other, event, 0))
    ok(rt.cudaEventDestroy(event))  # who waits goes on waiting
    ok(copy(target.ctypes.data, pointer, 4, other))
    assert target.tolist() == [1, 1, 1, 1]
    ok(rt.cudaMemsetAsync(pointer, 5, 4, other))
    ok(rt.cudaStreamDestroy(other))  # what is in it still runs
    assert error_of(rt.cudaStreamSynchronize(other)) == "InvalidResourceHandle"
    ok(rt.cudaDeviceSynchronize())
    assert bytes_of(pointer) == [5, 5, 5, 5]


@pytest.mark.parametrize("handle", [0, None, rt.cudaStreamLegacy])
def test_the_legacy_stream_waits_for_blocking_streams_and_they_for_it(handle, pointer, stream):
    blocking = new_stream(rt.cudaStreamDefault)
    ok(rt.cudaMemsetAsync(pointer, 1, 1, blocking))
    ok(rt.cudaMemsetAsync(pointer + 1, 1, 1, stream))
    ok(rt.cudaMemsetAsync(pointer + 2, 1, 1, handle))
    ok(rt.cudaStreamSynchronize(handle))
    assert bytes_of(pointer, 3) == [1, 0, 1]
    ok(rt.cudaMemsetAsync(pointer, 2, 3, handle))
    ok(rt.cudaStreamSynchronize(stream))
    assert bytes_of(pointer, 3) == [1, 1, 1]
    ok(rt.cudaMemsetAsync(pointer + 2, 3, 1, blocking))
    ok(rt.cudaStreamSynchronize(blocking))
    assert bytes_of(pointer, 3) == [2, 2, 3]
    ok(rt.cudaStreamDestroy(blocking))


def test_each_thread_has_its_own_default_stream(pointer):
    ok(rt.cudaMemsetAsync(pointer, 1, 1, rt.cudaStreamPerThread))
    ok(in_thread(lambda: rt.cudaStreamSynchronize(rt.cudaStreamPerThread)))
    assert bytes_of(pointer, 1) == [0]
    ok(rt.cudaStreamSynchronize(rt.cudaStreamPerThread))
    assert bytes_of(pointer, 1) == [1]


def test_threads_and_finalizers_share_the_machine(emulation):
    """A finalizer that takes a lock, as the library's may, waits for nobody who waits for it."""
    lock, wrong = threading.RLock(), []

    class Memory:
        def __init__(self):
            with lock:
                self.address = ok(rt.cudaMalloc(3 << 20))
            self.itself = self  # only the collector ends it
            weakref.finalize(self, self.free, self.address).atexit = False

        @staticmethod
        def free(address):
            if lock.acquire(timeout=10):
                lock.release()
                ok(rt.cudaFree(address))

    def work():
        source, stream = np.arange(64, dtype=np.uint8), new_stream()
        for _ in range(50):
            memory = Memory()
            ok(copy(memory.address, source, 64, stream))
            ok(rt.cudaStreamSynchronize(stream))
            if bytes_of(memory.address, 64) != source.tolist():
                wrong.append(memory)
        ok(rt.cudaStreamDestroy(stream))

    before = gc.get_threshold()
    gc.set_threshold(20, 2, 2)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.set_threshold(*before)
    assert gc.isenabled()
    assert wrong == []
    gc.collect()
    assert emulation.live() == emulated.Live(0, 0, 0, 0, 0)
