"""DLPack capsules, made and taken apart with ctypes.

Written from dlpack.h and the Python specification alone, and deliberately sharing nothing with the
library: each of the two finds the other's mistakes.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections import Counter
from collections.abc import Callable
from ctypes import c_char_p, c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any

import ml_dtypes
import numpy as np

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
READ_ONLY, IS_COPIED = 1, 2
VERSION = (1, 0)
_LEGACY, _VERSIONED = b"dltensor", b"dltensor_versioned"
_USED_LEGACY, _USED_VERSIONED = b"used_dltensor", b"used_dltensor_versioned"
_CODES = {"i": 0, "u": 1, "f": 2, "c": 5, "b": 6}
_SPECIAL = {
    np.dtype(ml_dtypes.bfloat16): (4, 16),
    np.dtype(ml_dtypes.float8_e4m3fn): (10, 8),
    np.dtype(ml_dtypes.float8_e5m2): (12, 8),
}

exported: dict[int, tuple[Any, ...]] = {}
deleted: Counter[int] = Counter()
"""What was exported and not deleted yet, and how often each was deleted, by address."""
_forgotten: dict[int, tuple[Any, ...]] = {}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", ctypes.POINTER(c_int64)),
        ("strides", ctypes.POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", c_void_p), ("deleter", c_void_p))


class _ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", c_uint32),
        ("minor", c_uint32),
        ("context", c_void_p),
        ("deleter", c_void_p),
        ("flags", c_uint64),
        ("tensor", _Tensor),
    )


_Deleter = ctypes.CFUNCTYPE(None, c_void_p)


def _api(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(ctypes.pythonapi, name)
    function.restype, function.argtypes = result, arguments
    return function


_new = _api("PyCapsule_New", ctypes.py_object, c_void_p, c_char_p, c_void_p)
_is_valid = _api("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, c_char_p)
_pointer = _api("PyCapsule_GetPointer", c_void_p, ctypes.py_object, c_char_p)
_rename = _api("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, c_char_p)
# A capsule that is just being destroyed must not become a Python object again.
_is_valid_at = ctypes.PYFUNCTYPE(ctypes.c_int, c_void_p, c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer_at = ctypes.PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@dataclasses.dataclass(frozen=True)
class Description:
    """What a capsule says of a tensor; strides are in items."""

    data: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: np.dtype[Any]
    device_type: int
    device: int
    byte_offset: int = 0
    flags: int = 0


def export(tensor: Description, owner: object, *, is_versioned: bool) -> Any:
    """Make a capsule that keeps `owner` alive until its deleter is called."""
    managed: Any = _ManagedVersioned() if is_versioned else _Managed()
    if is_versioned:
        managed.major, managed.minor = VERSION
        managed.flags = tensor.flags
    shape, strides = _int64s(tensor.shape), _int64s(tensor.strides)
    into = managed.tensor
    into.data = tensor.data
    into.device_type, into.device_id = tensor.device_type, tensor.device
    into.ndim = len(tensor.shape)
    into.code, into.bits = _code_of(tensor.dtype)
    into.lanes = 1
    into.shape, into.strides = shape, strides
    into.byte_offset = tensor.byte_offset
    managed.deleter = ctypes.cast(_delete, c_void_p)
    address = ctypes.addressof(managed)
    exported[address] = (managed, shape, strides, owner)
    deleted.pop(address, None)
    name = _VERSIONED if is_versioned else _LEGACY
    return _new(address, name, ctypes.cast(_destroy, c_void_p))


def take(capsule: Any) -> tuple[Description, Callable[[], None]]:
    """Take the tensor out of a capsule, which nobody else may do from then on.

    Returns:
        The tensor, and the function that must be called once when it is not needed any more.
    """
    is_versioned = bool(_is_valid(capsule, _VERSIONED))
    if not is_versioned and not _is_valid(capsule, _LEGACY):
        raise BufferError(f"{capsule!r} is no DLPack capsule, or was used already")
    name, used = (_VERSIONED, _USED_VERSIONED) if is_versioned else (_LEGACY, _USED_LEGACY)
    address = _pointer(capsule, name)
    managed: Any = (_ManagedVersioned if is_versioned else _Managed).from_address(address)
    _rename(capsule, used)

    def finish(deleter: int | None = managed.deleter) -> None:
        if deleter:
            _Deleter(deleter)(address)

    if is_versioned and managed.major != VERSION[0]:
        finish()
        raise BufferError(f"DLPack {managed.major}.{managed.minor} is not known here")
    tensor = managed.tensor
    assert tensor.lanes == 1
    try:
        dtype = _dtype_of(tensor.code, tensor.bits)
    except BaseException:
        finish()
        raise
    description = Description(
        data=tensor.data or 0,
        shape=tuple(tensor.shape[: tensor.ndim]),
        strides=tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None,
        dtype=dtype,
        device_type=tensor.device_type,
        device=tensor.device_id,
        byte_offset=tensor.byte_offset,
        flags=managed.flags if is_versioned else 0,
    )
    return description, finish


def forget() -> None:
    """Let go of what was exported and never deleted. Its borrower may still look at it."""
    _forgotten.update(exported)
    exported.clear()
    deleted.clear()


def name_of(capsule: Any) -> str:
    """Return a capsule's name."""
    for name in (_LEGACY, _VERSIONED, _USED_LEGACY, _USED_VERSIONED):
        if _is_valid(capsule, name):
            return name.decode()
    raise AssertionError(f"{capsule!r} is no DLPack capsule")


def _int64s(values: tuple[int, ...] | None) -> Any:
    return None if values is None else (c_int64 * max(1, len(values)))(*values)


def _code_of(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype in _SPECIAL:
        return _SPECIAL[dtype]
    return _CODES[dtype.kind], dtype.itemsize * 8


def _dtype_of(code: int, bits: int) -> np.dtype[Any]:
    for dtype, known in _SPECIAL.items():
        if known == (code, bits):
            return dtype
    kinds = {number: kind for kind, number in _CODES.items()}
    if code not in kinds:
        raise BufferError(f"no dtype here has DLPack's type code {code} and {bits} bits")
    return np.dtype("?" if kinds[code] == "b" else f"{kinds[code]}{bits // 8}")


@_Deleter
def _delete(address: int) -> None:
    if address in _forgotten:
        return
    deleted[address] += 1
    assert address in exported, "a DLPack tensor was deleted twice"
    del exported[address]


@_Deleter
def _destroy(capsule: int) -> None:
    """End a capsule: if nobody took its tensor, that ends with it."""
    for name in (_LEGACY, _VERSIONED):
        if _is_valid_at(capsule, name):
            _delete(_pointer_at(capsule, name))
