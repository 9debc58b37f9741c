"""Triton datatypes and numpy: names, item sizes, the framing of BYTES.

The table is the one of Triton's model configuration ("Datatypes"); BYTES is framed as
the binary tensor data extension says: a little-endian uint32 length before each element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ._errors import InferenceError, InputError

Shape = tuple[int, ...]
Array = npt.NDArray[Any]

BYTES = "BYTES"

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    BYTES: np.dtype(np.object_),
}
_DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}

_LENGTH = 4
_LONGEST = 2**32 - 1


def dtype_of(datatype: str) -> np.dtype[Any]:
    """Return the numpy dtype of a Triton datatype, or raise InputError."""
    try:
        return DTYPES[datatype]
    except (KeyError, TypeError):
        known = ", ".join(DTYPES)
        raise InputError(f"unknown datatype {datatype!r}; Triton has {known}") from None


def datatype_of(dtype: np.dtype[Any]) -> str | None:
    """Return the Triton datatype of a numpy dtype in any byte order, or None."""
    if dtype.kind in "SUT":
        return BYTES
    return _DATATYPES.get(dtype) or _DATATYPES.get(dtype.newbyteorder("="))


def byte_size_of(shape: Sequence[int], datatype: str) -> int:
    """Return the bytes of a tensor of fixed-size items: prod(shape) x item size."""
    return math.prod(shape) * DTYPES[datatype].itemsize


def encode_bytes(array: Array) -> bytes:
    """Frame the elements of an array of ``bytes`` or ``str`` (UTF-8), in C order."""
    parts: list[bytes] = []
    for element in array.ravel().tolist():
        if isinstance(element, str):
            element = element.encode()
        if not isinstance(element, bytes):
            raise InputError(
                f"a BYTES tensor holds bytes or str, got {type(element).__name__}; "
                "encode the elements first"
            )
        if len(element) > _LONGEST:
            raise InputError("an element of a BYTES tensor is at most 4 GiB - 1 byte long")
        parts.append(len(element).to_bytes(_LENGTH, "little"))
        parts.append(element)
    return b"".join(parts)


def decode_bytes(data: bytes, shape: Shape, *, exact: bool) -> tuple[Array, int]:
    """Read ``prod(shape)`` framed elements out of a private copy of untrusted memory.

    Args:
        data: the framed elements; it must not change while it is read.
        shape: shape of the array that is returned.
        exact: True if nothing may follow the last element.

    Returns:
        An object array of ``bytes``, and the number of bytes that were read.

    Raises:
        InferenceError: a length points past the end, or bytes are left over.
    """
    count = math.prod(shape)
    if count * _LENGTH > len(data):
        raise InferenceError(f"a BYTES tensor of {count} elements cannot be in {len(data)} bytes")
    elements = np.empty(count, dtype=np.object_)
    position = 0
    for index in range(count):
        start = position + _LENGTH
        end = start + int.from_bytes(data[position:start], "little")
        if start > len(data) or end > len(data):
            raise InferenceError(
                f"element {index} of a BYTES tensor ends at byte {end}, there are {len(data)}"
            )
        elements[index] = data[start:end]
        position = end
    if exact and position != len(data):
        raise InferenceError(
            f"a BYTES tensor of {count} elements ends at byte {position} of {len(data)}"
        )
    return elements.reshape(shape), position
