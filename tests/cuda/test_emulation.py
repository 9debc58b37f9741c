"""The emulated CUDA: its memory and its machine, which the other tests here take for granted."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import emulated_cuda as emulated
import numpy as np
import pytest
from emulated_cuda import arrays, driver
from emulated_cuda import runtime as rt
from emulated_cuda.asserting import (
    attribute,
    bytes_of,
    copy,
    error_of,
    exported,
    in_thread,
    new_stream,
    ok,
)

pytestmark = pytest.mark.once

MIB = 1 << 20
KINDS = rt.cudaMemcpyKind
ATTRIBUTES = driver.CUpointer_attribute


def test_the_host_cannot_touch_device_memory(pointer):
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [(*(int(end, 16) for end in line.split()[0].split("-")), line) for line in lines]
    found = [line for begin, end, line in ranges if begin <= pointer < end]
    assert found[0].split()[1] == "---s"


def test_free_waits_for_the_gpu_and_what_was_freed_is_gone(stream):
    first, second = ok(rt.cudaMalloc(2 * MIB)), ok(rt.cudaMalloc(2 * MIB))
    ok(rt.cudaMemsetAsync(second, 1, 1, stream))
    ok(rt.cudaFree(first))
    assert bytes_of(second, 1) == [1]
    for wrong in (first, second + 1, 12345):
        assert error_of(rt.cudaFree(wrong)) == "InvalidDevicePointer"
    assert rt.cudaGetLastError()[0].name == "cudaErrorInvalidDevicePointer"
    assert error_of(rt.cudaFreeHost(second)) == "InvalidValue"
    assert error_of(rt.cudaMemsetAsync(first, 0, 1, stream)) == "InvalidValue"
    assert error_of(copy(second, first, 1, stream)) == "InvalidValue"
    kinds = rt.cudaMemoryType
    unknown = ok(rt.cudaPointerGetAttributes(first))
    assert (unknown.type, unknown.device) == (kinds.cudaMemoryTypeUnregistered, -2)
    assert driver.cuMemGetAddressRange(first)[0].name == "CUDA_ERROR_INVALID_VALUE"
    ok(rt.cudaFree(second))
    ok(rt.cudaFree(0))


def test_copies_stay_inside_and_are_of_the_kind_that_is_said(pointer, stream, pinned):
    size = 2 * MIB
    host = np.zeros(16, np.uint8)
    assert error_of(copy(pointer + size - 8, host, 9, stream)) == "InvalidValue"
    assert error_of(copy(host.ctypes.data, pointer + size - 8, 9, stream)) == "InvalidValue"
    assert error_of(rt.cudaMemsetAsync(pointer, 0, size + 1, stream)) == "InvalidValue"
    assert error_of(copy(pointer, 0, 1, stream)) == "InvalidValue"
    assert error_of(copy(pinned[0] + 60, pointer, 5, stream)) == "InvalidValue"
    wrong = copy(pointer, host, 1, stream, KINDS.cudaMemcpyDeviceToHost)
    assert error_of(wrong) == "InvalidValue"
    ok(copy(pointer, host, 0, stream))


def test_work_on_memory_that_is_gone_is_a_fault_of_the_gpu(emulation):
    stream, address = new_stream(), emulation.allocate(MIB, "vmm")
    ok(rt.cudaMemsetAsync(address, 1, 1, stream))
    emulation.release(address)
    assert error_of(rt.cudaStreamSynchronize(stream)) == "IllegalAddress"
    assert error_of(rt.cudaGetDeviceCount()) == "IllegalAddress"  # nothing works any more
    emulation.set_fault(None)
    ok(rt.cudaStreamDestroy(stream))


def test_small_allocations_share_a_block_and_its_handle():
    small = [ok(rt.cudaMalloc(100)) for _ in range(2)]
    large = ok(rt.cudaMalloc(3 * MIB))
    assert small[1] - small[0] == 512
    assert exported(small[0]) == exported(small[1]) != exported(large)
    assert int.from_bytes(exported(large)[8:16], "little") == 4 * MIB
    assert error_of(rt.cudaIpcGetMemHandle(large + 512)) == "InvalidValue"
    base, size = ok(driver.cuMemGetAddressRange(small[1] + 5))
    assert (int(base), size) == (small[1], 100)
    assert attribute("BUFFER_ID", small[0]) != attribute("BUFFER_ID", small[1])
    for address in (*small, large):
        ok(rt.cudaFree(address))


def test_an_address_that_comes_back_has_another_buffer_id(emulation):
    emulation.reuse_addresses()
    for size in (100, 4 * MIB):
        kept, address = ok(rt.cudaMalloc(size)), ok(rt.cudaMalloc(size))
        buffer = attribute("BUFFER_ID", address)
        ok(rt.cudaFree(address))
        assert ok(rt.cudaMalloc(size)) == address
        assert attribute("BUFFER_ID", address) != buffer
        ok(rt.cudaFree(address))
        ok(rt.cudaFree(kept))


@pytest.mark.parametrize("kind", ["device", "managed", "pool", "vmm"])
def test_only_memory_of_cudamalloc_can_be_exported(kind, emulation, stream):
    ok(rt.cudaSetDevice(0))
    address = emulation.allocate(100, kind)
    assert attribute("IS_LEGACY_CUDA_IPC_CAPABLE", address) is (kind == "device")
    assert attribute("IS_MANAGED", address) is (kind == "managed")
    assert (int(attribute("MEMPOOL_HANDLE", address)) != 0) is (kind == "pool")
    if kind != "device":
        assert error_of(rt.cudaIpcGetMemHandle(address)) == "InvalidValue"
    ok(rt.cudaMemsetAsync(address, 3, 100, stream))
    ok(rt.cudaStreamSynchronize(stream))
    assert bytes_of(address, 1) == [3]
    ok(rt.cudaFree(address)) if kind != "vmm" else emulation.release(address)


EXPORTER = """
import ctypes, os, sys
import emulated_cuda
from emulated_cuda import runtime

address = runtime.cudaMalloc(16)[1]
emulated_cuda.host_view(address, 16)[:] = 5
if os.fork() == 0:
    sys.exit()  # the child of a fork must not remove its parent's memory
os.wait()
handle = runtime.cudaIpcGetMemHandle(address)[1]
print(ctypes.string_at(handle.getPtr(), 64).hex(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("ending", ["normal", "killed"])
def test_memory_of_another_process(ending, emulation):
    exporter = subprocess.Popen(
        [sys.executable, "-c", EXPORTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(emulated.__file__).parents[1])},
    )
    with exporter:
        handle = rt.cudaIpcMemHandle_t()
        ctypes.memmove(handle.getPtr(), bytes.fromhex(exporter.stdout.readline().decode()), 64)
        addresses = [ok(rt.cudaIpcOpenMemHandle(handle, 1)) for _ in range(2)]
        assert addresses[0] == addresses[1]
        assert bytes_of(addresses[0], 2) == [5, 5]
        assert emulation.live().imported == 1
        for _ in range(2):
            ok(rt.cudaIpcCloseMemHandle(addresses[0]))
        assert error_of(rt.cudaIpcCloseMemHandle(addresses[0])) == "InvalidValue"
        if ending == "killed":
            exporter.send_signal(signal.SIGKILL)
        exporter.communicate()
    emulation.sweep()
    assert not list(Path("/dev/shm").glob(f"emucuda.{exporter.pid}.*"))
    assert error_of(rt.cudaIpcOpenMemHandle(handle, 1)) == "InvalidResourceHandle"
    own = ok(rt.cudaMalloc(16))
    mine = ok(rt.cudaIpcGetMemHandle(own))
    assert error_of(rt.cudaIpcOpenMemHandle(mine, 1)) == "DeviceUninitialized"
    ok(rt.cudaFree(own))


# The machine


def test_failures_on_demand(emulation):
    with emulation.fail("cudaMalloc", "cudaErrorMemoryAllocation", after=1) as injected:
        address = ok(rt.cudaMalloc(1))
        assert error_of(rt.cudaMalloc(1)) == "MemoryAllocation"
        assert injected.times == 0
        ok(rt.cudaFree(ok(rt.cudaMalloc(1))))
    with emulation.fail("cudaFree", "cudaErrorUnknown"):
        pass
    with emulation.fail("cuPointerGetAttribute", "CUDA_ERROR_UNKNOWN"):
        result = driver.cuPointerGetAttribute(ATTRIBUTES.CU_POINTER_ATTRIBUTE_MAPPED, address)
        assert result == (driver.CUresult.CUDA_ERROR_UNKNOWN, None)
    seen = []
    with emulation.on_call("cudaFree", lambda: seen.append(1)):
        ok(rt.cudaFree(address))
    assert seen == [1]


def test_memory_runs_out(emulation):
    emulation.limit(0, 4 * MIB)
    emulation.limit("pinned", 100)
    address = ok(rt.cudaMalloc(3 * MIB))
    assert ok(rt.cudaMemGetInfo()) == (0, 4 * MIB)
    assert error_of(rt.cudaMalloc(1)) == "MemoryAllocation"
    assert error_of(rt.cudaHostAlloc(101, 0)) == "MemoryAllocation"
    ok(rt.cudaFree(address))
    assert ok(rt.cudaMemGetInfo()) == (4 * MIB, 4 * MIB)


def test_devices_come_and_go(emulation):
    assert ok(rt.cudaGetDeviceProperties(0)).uuid.bytes == b"EMULATED-GPU-000"
    assert error_of(rt.cudaSetDevice(1)) == "InvalidDevice"
    emulation.set_devices([1, 0])
    assert ok(rt.cudaGetDeviceProperties(0)).uuid.bytes == emulation.device_uuid(0)
    assert emulation.device_uuid(0) == b"EMULATED-GPU-001"
    emulation.set_devices(0)
    assert error_of(rt.cudaGetDeviceCount()) == error_of(rt.cudaMalloc(1)) == "NoDevice"
    emulation.set_driver(present=True, version=12080)
    assert error_of(rt.cudaGetDeviceCount()) == "InsufficientDriver"


def test_between_gpus(emulation):
    emulation.set_devices(2)
    first = ok(rt.cudaMalloc(64))
    ok(rt.cudaSetDevice(1))
    second, stream = ok(rt.cudaMalloc(64)), new_stream()
    event = ok(rt.cudaEventCreateWithFlags(0))
    ok(rt.cudaMemsetAsync(second, 4, 64, stream))
    ok(rt.cudaMemcpyPeerAsync(first, 0, second, 1, 64, stream))
    ok(rt.cudaEventRecord(event, stream))
    ok(rt.cudaSetDevice(0))
    ok(copy(second, first, 1, 0))  # from the other device, with no wait: the legacy stream is 0's
    assert error_of(rt.cudaEventRecord(event, 0)) == "InvalidResourceHandle"
    assert error_of(rt.cudaMemsetAsync(second, 0, 1, stream)) == "InvalidResourceHandle"
    assert error_of(rt.cudaMemsetAsync(second, 0, 1, 0)) == "InvalidValue"
    wrong = rt.cudaMemcpyPeerAsync(first, 1, second, 0, 64, stream)
    assert error_of(wrong) == "InvalidValue"
    ok(rt.cudaStreamWaitEvent(0, event, 0))
    ok(rt.cudaStreamSynchronize(0))
    assert bytes_of(first) == [4, 4, 4, 4]
    assert ok(rt.cudaDeviceCanAccessPeer(0, 1)) == 0
    emulation.set_peers(True)
    assert ok(rt.cudaDeviceCanAccessPeer(0, 1)) == 1
    ok(rt.cudaMemsetAsync(second, 6, 1, 0))
    ok(rt.cudaDeviceSynchronize())
    assert bytes_of(second, 2) == [6, 4]
    assert emulation.bytes_copied("P2P") == emulation.bytes_copied() == 65
    for address in (first, second):
        ok(rt.cudaFree(address))
    ok(rt.cudaStreamDestroy(stream))
    ok(rt.cudaEventDestroy(event))


def test_who_called_and_what_it_copied(pointer, stream, emulation):
    me, used = threading.get_ident(), []

    def work():
        used.append(threading.get_ident())
        assert driver.cuMemGetAddressRange(pointer)[0].name == "CUDA_ERROR_INVALID_CONTEXT"
        ok(copy(pointer, np.zeros(3, np.uint8), 3, stream))  # makes a context, of device 0

    emulation.forget_calls()
    in_thread(work)
    assert ok(rt.cudaGetErrorName(rt.cudaError_t.cudaErrorNotReady)) == b"cudaErrorNotReady"
    assert emulation.threads_used() == set(used)
    assert emulation.contexts() == {(used[0], 0)}
    assert emulation.bytes_copied("H2D") == 3
    assert emulation.bytes_copied("D2H") == 0
    tensor = arrays.from_numpy(np.arange(3))
    tensor.add_(1).numpy()
    assert me not in emulation.threads_used()
    assert me in emulation.threads_used(origin=None)
    assert [call.arguments[2] for call in emulation.calls("cudaMemcpyAsync")] == [3]
