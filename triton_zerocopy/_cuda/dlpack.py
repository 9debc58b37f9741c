"""DLPack in both directions: capsules made for others, and theirs taken over.

The structures and rules are those of DLPack 1.0 (dlpack.h) and its Python specification:
a capsule named ``dltensor`` or, for consumers that ask for version 1, ``dltensor_versioned``;
whoever takes one over renames it to ``used_...`` and calls its deleter exactly once.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import replace
from typing import Any, Final

import numpy as np

from .._datatypes import DTYPES
from .._errors import InputError
from .views import DeviceView, packed_strides

CPU: Final = 1
CUDA: Final = 2
CUDA_HOST: Final = 3
CUDA_MANAGED: Final = 13
VERSION: Final = (1, 0)

_READ_ONLY: Final = 1
_PLAIN: Final = b"dltensor"
_VERSIONED: Final = b"dltensor_versioned"
_USED: Final = {_PLAIN: b"used_dltensor", _VERSIONED: b"used_dltensor_versioned"}
_CODES: Final = {"b": 6, "i": 0, "u": 1, "f": 2, "V": 4}
"""DLDataTypeCode by kind of numpy dtype; bfloat16 is of kind V."""
_DATATYPES: Final = {
    (_CODES[dtype.kind], dtype.itemsize * 8): name
    for name, dtype in DTYPES.items()
    if not dtype.hasobject
}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (
        ("tensor", _Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class _ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_api = ctypes.pythonapi
_is_valid = _api.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, (ctypes.py_object, ctypes.c_char_p)
_pointer = _api.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_rename = _api.PyCapsule_SetName
_rename.restype, _rename.argtypes = ctypes.c_int, (ctypes.py_object, ctypes.c_char_p)
_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

for _each in _USED.values():
    # A capsule refers to its name, and may outlive this module.
    _api.Py_IncRef(ctypes.py_object(_each))

_nothing = ctypes.create_string_buffer(1)


class _Anchor:
    """Something that numpy makes an array of and keeps alive, and that keeps a tensor alive."""

    __slots__ = ("keeper", "shape", "strides")

    def __init__(self, view: DeviceView) -> None:
        count = len(view.shape)
        self.keeper = view.keeper
        self.shape = (ctypes.c_int64 * count)(*view.shape)
        self.strides = (ctypes.c_int64 * count)(*(step // view.itemsize for step in view.strides))

    @property
    def __array_interface__(self) -> dict[str, object]:
        place = (ctypes.addressof(_nothing), False)
        return {"shape": (1,), "typestr": "|u1", "data": place, "version": 3}


def give(view: DeviceView, *, is_versioned: bool, device_type: int = CUDA) -> object:
    """Return a capsule with a tensor; ``view.keeper`` lives until it is given back.

    The capsule is numpy's, of a small array, with another tensor written into it. Its
    destructor and its deleter have to be C: they run in whatever thread and in the middle of
    whatever error a consumer is in, where running Python code would lose that error.

    Args:
        view: the tensor.
        is_versioned: True if the consumer knows DLPack 1; numpy from 2.1 on can make these.
        device_type: where the memory is.
    """
    anchor = _Anchor(view)
    array = np.asarray(anchor)
    try:
        capsule = array.__dlpack__(max_version=VERSION) if is_versioned else array.__dlpack__()
    except TypeError:
        capsule = array.__dlpack__()
    is_versioned = bool(_is_valid(capsule, _VERSIONED))
    kind: Any = _ManagedVersioned if is_versioned else _Managed
    managed = kind.from_address(_pointer(capsule, _VERSIONED if is_versioned else _PLAIN))
    if is_versioned:
        managed.flags = _READ_ONLY if view.is_read_only else 0
    dtype = DTYPES[view.datatype]
    tensor = managed.tensor
    tensor.data = view.address
    tensor.device_type, tensor.device_id = device_type, view.device_id or 0
    tensor.code, tensor.bits, tensor.lanes = _CODES[dtype.kind], dtype.itemsize * 8, 1
    tensor.ndim, tensor.shape, tensor.strides = len(view.shape), anchor.shape, anchor.strides
    tensor.byte_offset = 0
    return capsule


class Taken:
    """A tensor that was taken over from a capsule; its deleter is called when this dies."""

    __slots__ = ("__weakref__",)

    def __init__(self, address: int, deleter: int | None) -> None:
        if deleter:
            weakref.finalize(self, _Deleter(deleter), address).atexit = False


def take(capsule: object, where: str) -> tuple[DeviceView, int]:
    """Take a capsule over: return its tensor and its DLPack device type.

    Raises:
        InputError: it is no capsule, was used before, or holds what Triton has no type for.
    """
    is_versioned = bool(_is_valid(capsule, _VERSIONED))
    if not is_versioned and not _is_valid(capsule, _PLAIN):
        raise InputError(
            f"{where}: __dlpack__ gave no usable capsule; each capsule can be used once only, so "
            "pass the tensor itself instead of one that was exported before"
        )
    name = _VERSIONED if is_versioned else _PLAIN
    pointer = _pointer(capsule, name)
    kind: Any = _ManagedVersioned if is_versioned else _Managed
    managed = kind.from_address(pointer)
    if is_versioned and managed.major != VERSION[0]:
        raise InputError(f"{where}: DLPack version {managed.major} is not known here, 1 is")
    # Read before it is taken over: until then the capsule deletes it after an error.
    view = _read(managed.tensor, where, is_versioned and bool(managed.flags & _READ_ONLY))
    _rename(capsule, _USED[name])
    keeper = Taken(pointer, managed.deleter)
    return replace(view, keeper=keeper), int(managed.tensor.device_type)


def _read(tensor: _Tensor, where: str, is_read_only: bool) -> DeviceView:
    datatype = _DATATYPES.get((tensor.code, tensor.bits))
    if datatype is None or tensor.lanes != 1:
        raise InputError(
            f"{where}: Triton has no datatype for DLPack's type code {tensor.code} with "
            f"{tensor.bits} bits and {tensor.lanes} lanes"
        )
    shape = tuple(tensor.shape[: tensor.ndim])
    itemsize = DTYPES[datatype].itemsize
    strides = (
        tuple(step * itemsize for step in tensor.strides[: tensor.ndim])
        if tensor.strides
        else packed_strides(shape, itemsize)
    )
    address = (tensor.data or 0) + tensor.byte_offset
    return DeviceView(
        address,
        shape,
        strides,
        datatype,
        tensor.device_id,
        keeper=None,
        is_read_only=is_read_only,
    )
