"""What all functions of the emulated CUDA have in common: their form, as cuda-python has it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ._enums import CUresult, cudaError_t
from ._lock import exclusive
from ._machine import LIBRARY, Failure, machine, origin

NO_DRIVER = (
    '"cuda" is an NVIDIA driver library and can only be found via system search. Ensure the'
    " NVIDIA display driver is installed."
)
# Asking is no error, so these stay out of cudaGetLastError.
_NOT_REMEMBERED = ("cudaErrorNotReady",)
_AS_RESULT = {
    "cudaErrorInvalidValue": "CUDA_ERROR_INVALID_VALUE",
    "cudaErrorNoDevice": "CUDA_ERROR_NO_DEVICE",
    "cudaErrorIllegalAddress": "CUDA_ERROR_ILLEGAL_ADDRESS",
    "cudaErrorLaunchFailure": "CUDA_ERROR_LAUNCH_FAILED",
}

Function = Callable[..., Any]


def runtime_call(values: int = 0, *, context: bool = True, pure: bool = False) -> Any:
    """Make a function of the runtime API.

    The function itself returns what comes after the error in cuda-python's tuple, or raises
    Failure. As in cuda-python, each value is None in case of an error.

    Args:
        values: how many that are.
        context: True if the call makes a context on the thread's current device.
        pure: True if it works without a driver and touches no GPU.
    """

    def decorate(function: Function) -> Function:
        name = function.__name__

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
            if not pure:
                check_driver_is_found()
                _run_hooks(name)
            with exclusive():
                try:
                    if not pure:
                        machine.record(name, args)
                        machine.check_usable()
                    machine.raise_injected(name)
                    if context:
                        machine.enter_context()
                    result = function(*args, **kwargs)
                except Failure as failure:
                    if failure.name not in _NOT_REMEMBERED:
                        machine.remember_error(failure.name)
                    return (cudaError_t.named(failure.name), *[None] * values)
            return (cudaError_t.cudaSuccess, *(result or ()))

        return call

    return decorate


def check_driver_is_found() -> None:
    """Raise what cuda-python before 12.9 raises without a driver, if that is wanted."""
    if not machine.has_driver and machine.raises_without_driver:
        raise RuntimeError("Failed to dlopen libcuda.so.1")


def driver_call(values: int = 0, *, context: bool = False, pure: bool = False) -> Any:
    """Make a function of the driver API; see `runtime_call`.

    Args:
        values: how many values it returns.
        context: True if the calling thread must have a current context already: the driver,
            unlike the runtime, makes none.
        pure: True if it needs no initialized driver.
    """

    def decorate(function: Function) -> Function:
        name = function.__name__

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
            if not machine.has_driver:
                # The driver's functions are in the driver's library; cuda-python finds none.
                raise RuntimeError(NO_DRIVER)
            if not pure:
                _run_hooks(name)
            with exclusive():
                try:
                    if not pure:
                        machine.record(name, args)
                    machine.raise_injected(name)
                    if not pure and not machine.is_initialized:
                        raise Failure("CUDA_ERROR_NOT_INITIALIZED")
                    if context and not machine.has_context:
                        raise Failure("CUDA_ERROR_INVALID_CONTEXT")
                    result = function(*args, **kwargs)
                except Failure as failure:
                    error = _AS_RESULT.get(failure.name, failure.name)
                    return (CUresult.named(error), *[None] * values)
            return (CUresult.CUDA_SUCCESS, *(result or ()))

        return call

    return decorate


class Pointer:
    """A number in an object, as cuda-python's CUdeviceptr.

    All that it can do is `int()`: it is no index, is equal only to itself, and even one of 0 is
    true.
    """

    def __init__(self, init_value: Any = 0) -> None:
        self._value = int(init_value or 0)

    def __int__(self) -> int:
        return self._value

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._value:#x}>"

    def getPtr(self) -> int:  # noqa: N802 # cuda-python's name
        """Return the address of the object's own memory, not the number; cuda-python does."""
        return id(self)


class Handle(Pointer):
    """A handle of a stream, an event or a pool; it has a little more. It is true, too."""

    def __index__(self) -> int:
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and type(other) is type(self) and int(other) == int(self)

    def __hash__(self) -> int:
        return hash(self._value)


def handle_of(value: Any) -> int:
    """Return a stream's or an event's handle: an int, None for 0, or an object that has one."""
    if value is None:
        return 0
    if isinstance(value, int | np.integer | Handle):
        return int(value)
    raise TypeError("an integer is required")


def address_of(value: Any) -> int:
    """Return an address: an int, None for 0, a handle, or an object with a buffer."""
    if value is None:
        return 0
    if isinstance(value, int | np.integer | Pointer):
        return int(value)
    try:
        view = memoryview(value)
    except TypeError:
        raise TypeError(
            f"Provided argument is of type {type(value)} but expected Type <class 'NoneType'>,"
            " <class 'type'> or object with Buffer Protocol"
        ) from None
    return np.frombuffer(view, np.uint8).ctypes.data


def _run_hooks(name: str) -> None:
    # Not under the lock: a hook may wait for another thread, or cancel a task.
    for function, hook in list(machine.hooks):
        if function == name and origin() == LIBRARY:
            hook()
