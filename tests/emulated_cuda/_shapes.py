"""What a runtime and a driver module look like from outside: names, parameters, values, types.

Run on the real cuda-python (in a process of its own, see `emulated_cuda.real`) and on the
emulation, so it knows nothing of either.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

# Arguments that fail everywhere, but have the right types. What takes none is left out.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "cudaGetDeviceCount": (),
    "cudaGetDevice": (),
    "cudaSetDevice": (0,),
    "cudaGetDeviceProperties": (0,),
    "cudaDeviceCanAccessPeer": (0, 1),
    "cudaMemGetInfo": (),
    "cudaMalloc": (16,),
    "cudaFree": (16,),
    "cudaHostAlloc": (16, 0),
    "cudaFreeHost": (16,),
    "cudaMemcpyAsync": (16, 32, 1, "kind", 0),
    "cudaMemcpy2DAsync": (16, 1, 32, 1, 1, 1, "kind", 0),
    "cudaMemcpyPeerAsync": (16, 0, 32, 0, 1, 0),
    "cudaMemsetAsync": (16, 0, 1, 0),
    "cudaStreamCreateWithFlags": (1,),
    "cudaStreamDestroy": (16,),
    "cudaStreamQuery": (0,),
    "cudaStreamSynchronize": (0,),
    "cudaStreamWaitEvent": (0, 0, 0),
    "cudaEventCreateWithFlags": (2,),
    "cudaEventDestroy": (16,),
    "cudaEventRecord": (16, 0),
    "cudaEventQuery": (16,),
    "cudaEventSynchronize": (16,),
    "cudaDeviceSynchronize": (),
    "cudaPointerGetAttributes": (16,),
    "cudaIpcGetMemHandle": (16,),
    "cudaIpcOpenMemHandle": ("handle", 1),
    "cudaIpcCloseMemHandle": (16,),
}
RUNTIME = (
    *ARGUMENTS,
    *("cudaDriverGetVersion", "cudaRuntimeGetVersion", "cudaGetErrorName", "cudaGetErrorString"),
    "cudaGetLastError",
)
DRIVER = ("cuInit", "cuPointerGetAttribute", "cuMemGetAddressRange", "cuGetErrorName")
CLASSES = ("cudaStream_t", "cudaEvent_t", "CUdeviceptr", "CUmemoryPool")
ATTRIBUTES = (
    *("BUFFER_ID", "RANGE_START_ADDR", "RANGE_SIZE", "IS_LEGACY_CUDA_IPC_CAPABLE", "MEMORY_TYPE"),
    *("IS_MANAGED", "MEMPOOL_HANDLE", "DEVICE_ORDINAL", "MAPPED"),
)


def parameters(runtime: ModuleType, driver: ModuleType) -> dict[str, list[str]]:
    """Return what the functions' parameters are called."""
    functions = {name: getattr(runtime, name) for name in RUNTIME}
    functions |= {name: getattr(driver, name) for name in (*DRIVER, "cuGetErrorString")}
    return {name: list(inspect.signature(each).parameters) for name, each in functions.items()}


def failures(runtime: ModuleType) -> dict[str, list[Any] | str]:
    """Return what functions answer where there is no driver or no device: all but the error.

    Before 12.9, cuda-python raises RuntimeError instead.
    """
    stands_for = {
        "kind": runtime.cudaMemcpyKind.cudaMemcpyDefault,
        "handle": runtime.cudaIpcMemHandle_t(),
    }
    found: dict[str, list[Any] | str] = {}
    for name, arguments in ARGUMENTS.items():
        try:
            found[name] = list(
                getattr(runtime, name)(*[stands_for.get(a, a) for a in arguments])[1:]
            )
        except RuntimeError:
            found[name] = "raises"
    return found


def values(runtime: ModuleType, driver: ModuleType) -> dict[str, int]:
    """Return all constants and enum members there are, by name."""
    found: dict[str, int] = {}
    for module in (runtime, driver):
        for name in dir(module):
            each = getattr(module, name)
            if name.startswith("_"):
                continue
            if isinstance(each, int):
                found[name] = int(each)
            elif isinstance(each, type) and issubclass(each, int) and each is not int:
                found |= {f"{name}.{member.name}": int(member) for member in each}
    return found


def texts(runtime: ModuleType) -> list[str]:
    """Return how an enum member reads, and what it does not allow."""
    member = runtime.cudaError_t.cudaErrorInvalidValue
    try:
        subscribed = str(runtime.cudaError_t["cudaErrorInvalidValue"])
    except TypeError as error:
        subscribed = str(error)
    return [str(member), f"{member}", repr(member), member.name, subscribed]


def abilities(runtime: ModuleType, driver: ModuleType) -> dict[str, list[bool]]:
    """Tell what handle objects can do."""
    found = {}
    for name in CLASSES:
        kind = getattr(runtime, name, None) or getattr(driver, name)
        found[name] = [
            int(kind(5)) == 5,
            hasattr(kind, "__index__"),
            kind(5) == kind(5),
            kind(5) == 5,
            bool(kind(0)),
        ]
    return found


def types_of_attributes(driver: ModuleType, pointer: int) -> dict[str, str]:
    """Return the types of what the driver says of a pointer."""
    found = {}
    for name in ATTRIBUTES:
        attribute = getattr(driver.CUpointer_attribute, f"CU_POINTER_ATTRIBUTE_{name}")
        error, value = driver.cuPointerGetAttribute(attribute, pointer)
        assert error == driver.CUresult.CUDA_SUCCESS, (name, error)
        found[name] = type(value).__name__
    _, base, size = driver.cuMemGetAddressRange(pointer)
    name = driver.cuGetErrorName(driver.CUresult.CUDA_ERROR_INVALID_VALUE)[1]
    return found | {
        "base": type(base).__name__,
        "size": type(size).__name__,
        "name": type(name).__name__,
    }


def types_of_structures(properties: Any, pointer: Any, handle: Any) -> dict[str, str]:
    """Return the types of what structures hold."""
    parts = {
        "name": properties.name,
        "uuid": properties.uuid.bytes,
        "integrated": properties.integrated,
        "major": properties.major,
        "minor": properties.minor,
        "totalGlobalMem": properties.totalGlobalMem,
        "type": pointer.type,
        "device": pointer.device,
        "devicePointer": pointer.devicePointer,
        "hostPointer": pointer.hostPointer,
        "handle": handle.getPtr(),
    }
    return {key: type(value).__name__ for key, value in parts.items()}
