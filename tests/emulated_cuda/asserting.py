"""What tests of the emulation use to call CUDA's functions and to look at what they return."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

from . import driver, runtime
from ._control import host_view


def ok(result: tuple[Any, ...]) -> Any:
    """Return what a call returned besides the error, which must be none."""
    error, *values = result
    assert error == 0, error
    return values[0] if len(values) == 1 else tuple(values)


def error_of(result: tuple[Any, ...]) -> str:
    """Return the name of a call's error, which must be one; its values must be None."""
    error, *values = result
    assert error != 0
    assert all(value is None for value in values)
    return error.name.removeprefix("cudaError")


def new_stream(flags: int = runtime.cudaStreamNonBlocking) -> Any:
    return ok(runtime.cudaStreamCreateWithFlags(flags))


def copy(
    target: Any,
    source: Any,
    count: int,
    stream: Any,
    kind: Any = runtime.cudaMemcpyKind.cudaMemcpyDefault,
) -> tuple[Any, ...]:
    """Queue a copy."""
    return runtime.cudaMemcpyAsync(target, source, count, kind, stream)


def in_thread(function: Callable[[], Any]) -> Any:
    """Run a function in another thread and return what it returns."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def attribute(name: str, pointer: int) -> Any:
    """Return what the driver says of a pointer, as ``"BUFFER_ID"``."""
    wanted = getattr(driver.CUpointer_attribute, f"CU_POINTER_ATTRIBUTE_{name}")
    return ok(driver.cuPointerGetAttribute(wanted, pointer))


def bytes_of(pointer: int, count: int = 4) -> list[int]:
    """Return the bytes that are in memory now."""
    return host_view(pointer, count).tolist()


def exported(pointer: int) -> bytes:
    """Return the 64 bytes of a handle that another process can open."""
    handle = ok(runtime.cudaIpcGetMemHandle(pointer))  # held: its memory ends with it
    return ctypes.string_at(handle.getPtr(), runtime.CUDA_IPC_HANDLE_SIZE)
