"""Every CUDA call of this package, as a typed function. Nothing here is run on import.

A function raises CudaError with CUDA's name, meaning and a remedy. All but the ones of
``check_available`` need the calling thread to have set its device: only `Device`'s thread
calls them, so the caller's threads and their current device stay untouched, and no context
is made that was not there.

The functions are those of cuda-python's runtime bindings (docs: CUDA Runtime API), and of its
driver bindings for what only the driver tells of a pointer.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from dataclasses import dataclass
from typing import Any, Final

from .._errors import CapacityError, CudaError
from .errors import cuda_error

HANDLE_BYTES: Final = 64
"""Size of cudaIpcMemHandle_t."""

LEGACY_STREAM: Final = 1
"""cudaStreamLegacy, the default stream that waits for all blocking streams."""

PER_THREAD_STREAM: Final = 2
"""cudaStreamPerThread: another stream in each thread, so not to be waited for from here."""

_OLDEST_DRIVER: Final = 12000


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What CUDA says of a GPU.

    Attributes:
        name: the product's name.
        uuid: the 16 bytes that tell it from all others.
        is_integrated: True on Jetson and the like, which have no CUDA IPC.
    """

    name: str
    uuid: bytes
    is_integrated: bool


@dataclass(frozen=True, slots=True)
class PointerFacts:
    """What CUDA says of an address.

    Attributes:
        is_device: True for memory on a GPU, managed memory included.
        is_managed: True for managed memory.
        device_id: ordinal of the GPU.
    """

    is_device: bool
    is_managed: bool
    device_id: int


@dataclass(frozen=True, slots=True)
class AllocationFacts:
    """What the driver says of the allocation that an address lies in.

    Attributes:
        base: where it begins.
        byte_size: its bytes.
        buffer_id: a number that no other allocation of this process ever has.
        is_exportable: True if a CUDA IPC handle can be made for it.
        is_pooled: True if it comes from a stream-ordered memory pool.
    """

    base: int
    byte_size: int
    buffer_id: int
    is_exportable: bool
    is_pooled: bool


def _runtime() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise CudaError(
            f"CUDA memory needs cuda-python ({error}); pip install 'triton-zerocopy[cuda]'"
        ) from error


def _driver() -> Any:
    return importlib.import_module("cuda.bindings.driver")


def _call(doing: str, name: str, *arguments: object) -> Any:
    """Call a runtime function; return its value, or a tuple of several, or None."""
    module = _runtime()
    try:
        status, *values = getattr(module, name)(*arguments)
    except RuntimeError as error:  # cuda-python before 12.9, where there is no driver
        raise cuda_error("cudaErrorInsufficientDriver", str(error), 35, doing) from error
    if status != module.cudaError_t.cudaSuccess:
        raise _explained(module, status, doing)
    return values[0] if len(values) == 1 else tuple(values) or None


def _explained(module: Any, status: Any, doing: str) -> CudaError:
    # Asking for the text clears nothing; the last error is cleared, for others in this thread.
    module.cudaGetLastError()
    text = module.cudaGetErrorString(status)[1]
    return cuda_error(
        str(getattr(status, "name", status)),
        text.decode() if isinstance(text, bytes) else str(text),
        int(status),
        doing,
    )


# Devices


def check_available(device_id: int) -> None:
    """Raise CudaError unless this process can use that GPU."""
    if sys.platform != "linux":
        raise CudaError("CUDA memory can be shared on Linux only")
    doing = f"memory='cuda:{device_id}'"
    version = _call(doing, "cudaDriverGetVersion")
    if 0 < version < _OLDEST_DRIVER:
        raise CudaError(
            f"{doing}: the driver knows CUDA {version // 1000}.{version % 1000 // 10}, 12.0 is the "
            "oldest that works here; install a newer driver",
            name="cudaErrorInsufficientDriver",
            code=35,
        )
    count = _call(doing, "cudaGetDeviceCount")
    if device_id >= count:
        seen = f"it sees {count}, 'cuda:0' to 'cuda:{count - 1}'" if count else "it sees none"
        raise cuda_error(
            "cudaErrorInvalidDevice", f"this process has no such GPU, {seen}", 101, doing
        )


def set_device(device_id: int) -> None:
    """Bind the calling thread to a GPU; makes its primary context if there is none yet."""
    _call(f"using cuda:{device_id}", "cudaSetDevice", device_id)


def device_facts(device_id: int) -> DeviceFacts:
    """Return what CUDA says of a GPU."""
    facts = _call(f"asking about cuda:{device_id}", "cudaGetDeviceProperties", device_id)
    name = facts.name
    return DeviceFacts(
        name.decode() if isinstance(name, bytes) else str(name),
        bytes(facts.uuid.bytes),
        bool(facts.integrated),
    )


def synchronize_device() -> None:
    """Wait, blocking, for all work on the thread's GPU."""
    _call("waiting for the GPU", "cudaDeviceSynchronize")


# Memory


def malloc(byte_size: int) -> int:
    """Allocate device memory. Raises CapacityError if the GPU is full."""
    try:
        return int(_call(f"allocating {byte_size} bytes on the GPU", "cudaMalloc", byte_size))
    except CudaError as error:
        if error.name != "cudaErrorMemoryAllocation":
            raise
        free, total = _call("asking for free memory", "cudaMemGetInfo")
        raise CapacityError(
            f"{byte_size} bytes of GPU memory were wanted, {free} of {total} are free; use fewer "
            "slots or smaller shapes, or free what other programs and allocators (for torch: "
            "torch.cuda.empty_cache()) hold there",
            needed=byte_size,
        ) from error


def free(address: int) -> None:
    """Free device memory; waits for all work of the GPU."""
    _call("freeing GPU memory", "cudaFree", address)


def malloc_host(byte_size: int) -> int:
    """Allocate pinned host memory, which the GPU copies from and to by itself."""
    flags = _runtime().cudaHostAllocPortable
    return int(_call("allocating pinned memory", "cudaHostAlloc", byte_size, flags))


def free_host(address: int) -> None:
    """Free pinned host memory."""
    _call("freeing pinned memory", "cudaFreeHost", address)


def ipc_handle(address: int) -> bytes:
    """Return the 64 bytes by which another process opens an allocation."""
    handle = _call("exporting GPU memory (CUDA IPC)", "cudaIpcGetMemHandle", address)
    # 64 raw bytes that may hold zeros. `reserved`, which had them, is gone in cuda-python 13.
    return ctypes.string_at(handle.getPtr(), HANDLE_BYTES)


def pointer_facts(address: int) -> PointerFacts:
    """Return what CUDA says of an address."""
    facts = _call("looking at a pointer", "cudaPointerGetAttributes", address)
    kinds = _runtime().cudaMemoryType
    is_managed = facts.type == kinds.cudaMemoryTypeManaged
    return PointerFacts(
        is_managed or facts.type == kinds.cudaMemoryTypeDevice, is_managed, int(facts.device)
    )


def allocation_facts(address: int) -> AllocationFacts:
    """Return what the driver says of the allocation that ``address`` lies in."""
    return AllocationFacts(
        base=_attribute("RANGE_START_ADDR", address),
        byte_size=_attribute("RANGE_SIZE", address),
        buffer_id=buffer_id(address),
        is_exportable=bool(_attribute("IS_LEGACY_CUDA_IPC_CAPABLE", address)),
        is_pooled=bool(_attribute("MEMPOOL_HANDLE", address)),
    )


def buffer_id(address: int) -> int:
    """Return the number of the allocation that ``address`` lies in; see `AllocationFacts`."""
    return _attribute("BUFFER_ID", address)


def _attribute(name: str, address: int) -> int:
    driver = _driver()
    key = getattr(driver.CUpointer_attribute, f"CU_POINTER_ATTRIBUTE_{name}")
    status, value = driver.cuPointerGetAttribute(key, address)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise cuda_error(
            str(getattr(status, "name", status)),
            "the driver does not know this address",
            int(status),
            "looking at a tensor's memory",
        )
    return 0 if value is None else int(value)


# Copies


def copy(target: int, source: int, byte_size: int, stream: int) -> None:
    """Queue a copy; the direction follows from the addresses (unified addressing)."""
    kind = _runtime().cudaMemcpyKind.cudaMemcpyDefault
    _call("copying", "cudaMemcpyAsync", target, source, byte_size, kind, stream)


def copy_rows(
    target: int,
    target_pitch: int,
    source: int,
    source_pitch: int,
    width: int,
    height: int,
    stream: int,
) -> None:
    """Queue a copy of ``height`` pieces of ``width`` bytes that lie a pitch apart."""
    kind = _runtime().cudaMemcpyKind.cudaMemcpyDefault
    _call(
        "copying rows",
        "cudaMemcpy2DAsync",
        target,
        target_pitch,
        source,
        source_pitch,
        width,
        height,
        kind,
        stream,
    )


def copy_across(
    target: int, target_device: int, source: int, source_device: int, byte_size: int, stream: int
) -> None:
    """Queue a copy between two GPUs; the driver goes through the host if it must."""
    _call(
        f"copying from cuda:{source_device} to cuda:{target_device}",
        "cudaMemcpyPeerAsync",
        target,
        target_device,
        source,
        source_device,
        byte_size,
        stream,
    )


def fill(address: int, value: int, byte_size: int, stream: int) -> None:
    """Queue setting bytes."""
    _call("filling memory", "cudaMemsetAsync", address, value, byte_size, stream)


# Streams and events


def make_stream() -> int:
    """Make a stream that does not wait for the legacy default stream."""
    flags = _runtime().cudaStreamNonBlocking
    return int(_call("making a stream", "cudaStreamCreateWithFlags", flags))


def destroy_stream(stream: int) -> None:
    """Give a stream back."""
    _call("destroying a stream", "cudaStreamDestroy", stream)


def make_event() -> int:
    """Make an event that takes no time stamps."""
    flags = _runtime().cudaEventDisableTiming
    return int(_call("making an event", "cudaEventCreateWithFlags", flags))


def destroy_event(event: int) -> None:
    """Give an event back."""
    _call("destroying an event", "cudaEventDestroy", event)


def record(event: int, stream: int) -> None:
    """Have an event happen when all that is queued on a stream by now is done."""
    _call("recording an event", "cudaEventRecord", event, stream)


def wait_for(stream: int, event: int) -> None:
    """Have what is queued on a stream from now on wait for an event."""
    _call("ordering streams", "cudaStreamWaitEvent", stream, event, 0)


def has_happened(event: int) -> bool:
    """Tell whether an event has happened, without waiting."""
    module = _runtime()
    (status,) = module.cudaEventQuery(event)
    if status == module.cudaError_t.cudaErrorNotReady:
        return False
    if status != module.cudaError_t.cudaSuccess:
        raise _explained(module, status, "waiting for the GPU")
    return True
