"""What callers may pass as an input, turned into checked tensors; nothing is sent here.

Nothing is cast or broadcast silently. Python literals have no datatype of their own, so
they take the model's where that loses nothing: integers must be in range, and floats are
rounded to the nearest value as a literal would be, but never to infinity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ._datatypes import BYTES, Array, Shape, byte_size_of, datatype_of, encode_bytes
from ._errors import InputError
from ._regions.base import RegionTensor
from ._specs import ModelSpec, TensorSpec

_CPU_DEVICES = (1,)  # DLDeviceType.kDLCPU, dlpack.h


class Tensor(Protocol):
    """One checked input of one request."""

    @property
    def spec(self) -> TensorSpec: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def byte_size(self) -> int:
        """Exact bytes on the server's side."""
        ...

    def write(self, target: Array) -> None:
        """Copy into ``target``: this shape and dtype, or flat uint8 for BYTES."""
        ...

    def payload(self) -> memoryview:
        """The bytes as they go inline into a message."""
        ...

    def rows(self, start: int, stop: int) -> Tensor:
        """The part of a batch from row ``start`` to before row ``stop``."""
        ...


@dataclass(slots=True)
class DenseTensor:
    """An array of fixed-size items, in any layout and byte order."""

    spec: TensorSpec
    array: Array
    shape: Shape
    byte_size: int

    def write(self, target: Array) -> None:
        np.copyto(target, self.array, casting="equiv")

    def payload(self) -> memoryview:
        native = np.ascontiguousarray(self.array, dtype=self.spec.dtype)
        return native.reshape(-1).view(np.uint8).data

    def rows(self, start: int, stop: int) -> Tensor:
        return _dense(self.spec, self.array[start:stop])


@dataclass(slots=True)
class RowsTensor:
    """Rows that lie apart: each is copied to its place, they are never stacked first."""

    spec: TensorSpec
    arrays: Sequence[Array]
    shape: Shape
    byte_size: int

    def write(self, target: Array) -> None:
        for place, row in zip(target, self.arrays, strict=True):
            np.copyto(place, row, casting="equiv")

    def payload(self) -> memoryview:
        stacked = np.empty(self.shape, self.spec.dtype)
        self.write(stacked)
        return stacked.reshape(-1).view(np.uint8).data

    def rows(self, start: int, stop: int) -> Tensor:
        part = self.arrays[start:stop]
        shape = (len(part), *self.shape[1:])
        return RowsTensor(self.spec, part, shape, byte_size_of(shape, self.spec.datatype))


class BytesTensor:
    """A BYTES tensor; it is framed once, when its bytes or their number are needed."""

    __slots__ = ("_framed", "array", "shape", "spec")

    def __init__(self, spec: TensorSpec, array: Array) -> None:
        self.spec = spec
        self.array = array
        self.shape: Shape = array.shape
        self._framed: bytes | None = None

    def frame(self) -> bytes:
        """Return the framed elements. Raises InputError for other things than strings."""
        if self._framed is None:
            try:
                self._framed = encode_bytes(self.array)
            except InputError as error:
                raise InputError(f"input {self.spec.name!r}: {error}") from None
        return self._framed

    @property
    def byte_size(self) -> int:
        return len(self.frame())

    def write(self, target: Array) -> None:
        target[:] = np.frombuffer(self.frame(), np.uint8)

    def payload(self) -> memoryview:
        return memoryview(self.frame())

    def rows(self, start: int, stop: int) -> Tensor:
        return BytesTensor(self.spec, self.array[start:stop])


@dataclass(slots=True)
class PlacedTensor:
    """A tensor that is in a registered region of the caller's already."""

    spec: TensorSpec
    source: RegionTensor
    shape: Shape
    byte_size: int

    def write(self, target: Array) -> None:
        raise NotImplementedError("a placed tensor is never copied")

    def payload(self) -> memoryview:
        raise NotImplementedError("a placed tensor is never sent inline")

    def rows(self, start: int, stop: int) -> Tensor:
        if self.spec.datatype == BYTES:
            raise InputError(
                f"input {self.spec.name!r}: a BYTES tensor in a region cannot be split into "
                "batches; send at most max_batch_size rows"
            )
        shape = (stop - start, *self.shape[1:])
        row = self.byte_size // self.shape[0]
        part = RegionTensor(
            self.source.region,
            shape,
            self.source.datatype,
            self.source.offset + start * row,
            (stop - start) * row,
        )
        return PlacedTensor(self.spec, part, shape, part.byte_size)


def check_input(model: ModelSpec, name: str, value: object) -> Tensor:
    """Turn one value into a checked tensor.

    Raises:
        InputError: it has another datatype or shape than the model wants, or is nothing
            that can be an input.
    """
    spec = model.inputs[name]
    if type(value) is np.ndarray:
        return _from_array(model, spec, value)
    if isinstance(value, RegionTensor):
        return _from_region(model, spec, value)
    if isinstance(value, np.ndarray):
        return _from_array(model, spec, np.asarray(value))
    if isinstance(value, np.generic):
        return _from_array(model, spec, _fill_one(spec, np.asarray(value)))
    if hasattr(value, "__dlpack__"):
        return _from_array(model, spec, _from_dlpack(model, spec, value))
    if isinstance(value, (list, tuple)):
        if value and any(
            isinstance(row, np.ndarray) or hasattr(row, "__dlpack__") for row in value
        ):
            return _from_rows(model, spec, value)
        return _from_literal(model, spec, value)
    if isinstance(value, (bool, int, float, str, bytes)):
        return _from_literal(model, spec, value)
    raise InputError(
        f"{_where(model, spec)}: cannot use a {type(value).__name__}; pass a numpy array, an "
        "object with __dlpack__, a list of rows, or plain numbers or strings"
    )


def literal_size(value: object) -> int:
    """Guess the elements in nested lists or an object array without walking all of them."""
    if isinstance(value, np.ndarray):
        return value.size if value.dtype.kind in "OSTU" else 0
    count = 1
    while isinstance(value, (list, tuple)) and value:
        count *= len(value)
        value = value[0]
    return 0 if isinstance(value, np.ndarray) or hasattr(value, "__dlpack__") else count


def _where(model: ModelSpec, spec: TensorSpec) -> str:
    return f"model {model.name!r}, input {spec.name!r}"


def _dense(spec: TensorSpec, array: Array) -> DenseTensor:
    return DenseTensor(spec, array, array.shape, array.nbytes)


def _check_shape(model: ModelSpec, spec: TensorSpec, shape: Shape) -> None:
    if not spec.accepts(shape):
        raise InputError(
            f"{_where(model, spec)}: expected shape {list(spec.shape)} (-1 is any), "
            f"got {list(shape)}"
        )


def _wrong_datatype(model: ModelSpec, spec: TensorSpec, got: object) -> InputError:
    return InputError(
        f"{_where(model, spec)}: expected {spec.datatype} ({spec.dtype}), got {got}; "
        "nothing is cast silently, convert it yourself"
    )


def _from_array(model: ModelSpec, spec: TensorSpec, array: Array) -> Tensor:
    dtype = array.dtype
    if dtype is not spec.dtype and datatype_of(dtype) != spec.datatype:
        raise _wrong_datatype(model, spec, f"{datatype_of(dtype) or 'an array'} ({dtype})")
    _check_shape(model, spec, array.shape)
    if spec.datatype == BYTES:
        return BytesTensor(spec, array)
    return _dense(spec, array)


def _from_dlpack(model: ModelSpec, spec: TensorSpec, value: Any) -> Array:
    device = value.__dlpack_device__() if hasattr(value, "__dlpack_device__") else (1, 0)
    if int(device[0]) not in _CPU_DEVICES:
        raise InputError(
            f"{_where(model, spec)}: got a tensor on device {tuple(map(int, device))} (DLPack), "
            "but this model uses host memory; open it with memory='cuda:N' or copy the tensor to "
            "the host first"
        )
    try:
        return np.from_dlpack(value)
    except Exception as error:
        raise InputError(
            f"{_where(model, spec)}: numpy cannot import this {type(value).__name__} through "
            f"DLPack ({error}); pass a numpy array"
        ) from error


def _from_rows(model: ModelSpec, spec: TensorSpec, values: Sequence[Any]) -> Tensor:
    row_spec = TensorSpec(spec.name, spec.datatype, spec.shape[1:])
    arrays: list[Array] = []
    for index, value in enumerate(values):
        if not isinstance(value, np.ndarray):
            value = _from_dlpack(model, spec, value) if hasattr(value, "__dlpack__") else value
        if not isinstance(value, np.ndarray):
            raise InputError(
                f"{_where(model, spec)}: row {index} is a {type(value).__name__} among arrays"
            )
        if datatype_of(value.dtype) != spec.datatype:
            raise _wrong_datatype(model, spec, f"{value.dtype} in row {index}")
        if not row_spec.accepts(value.shape) or value.shape != np.shape(values[0]):
            raise InputError(
                f"{_where(model, spec)}: expected rows of one shape {list(row_spec.shape)} "
                f"(-1 is any), got {list(value.shape)} in row {index}"
            )
        arrays.append(value)
    shape = (len(arrays), *arrays[0].shape)
    _check_shape(model, spec, shape)
    if spec.datatype == BYTES:
        return BytesTensor(spec, np.stack([array.astype(object) for array in arrays]))
    return RowsTensor(spec, arrays, shape, byte_size_of(shape, spec.datatype))


def _from_region(model: ModelSpec, spec: TensorSpec, value: RegionTensor) -> Tensor:
    if value.datatype != spec.datatype:
        raise _wrong_datatype(model, spec, value.datatype)
    _check_shape(model, spec, value.shape)
    return PlacedTensor(spec, value, value.shape, value.byte_size)


_KINDS = {"b": "b", "i": "iu", "u": "iu", "f": "iuf", "V": "iuf"}
"""Kinds of literals that a dtype of a kind takes; bfloat16 is of kind V."""


def _from_literal(model: ModelSpec, spec: TensorSpec, value: object) -> Tensor:
    if spec.datatype == BYTES:
        return _from_array(model, spec, _literal_strings(model, spec, value))
    try:
        loose = np.asarray(value)
    except (ValueError, OverflowError):
        raise InputError(
            f"{_where(model, spec)}: expected shape {list(spec.shape)}, got lists of different "
            "lengths"
        ) from None
    if loose.size == 0:
        loose = loose.astype(spec.dtype)
    elif loose.dtype.kind not in _KINDS[spec.dtype.kind]:
        raise _wrong_datatype(model, spec, f"Python values that numpy reads as {loose.dtype}")
    exact = loose.dtype.kind in "iu" and _KINDS[spec.dtype.kind] != "b"
    with np.errstate(all="ignore"):
        array = loose.astype(spec.dtype)
        # An overflowing float wraps to infinity or to garbage when it is cast back.
        back = array.astype(loose.dtype)
        lost = back != loose if exact else np.isinf(back) & np.isfinite(loose)
    if loose.dtype.kind in "iuf" and bool(np.any(lost)):
        raise InputError(
            f"{_where(model, spec)}: {loose[lost].flat[0]} is not representable in {spec.datatype}"
        )
    return _from_array(model, spec, _fill_one(spec, array))


def _literal_strings(model: ModelSpec, spec: TensorSpec, value: object) -> Array:
    array = np.array(value, dtype=np.object_)
    # The framing checks each element; here only the first, so that numbers fail early.
    first = array.flat[0] if array.size else b""
    if not isinstance(first, (str, bytes)):
        raise InputError(
            f"{_where(model, spec)}: expected bytes or str, got {type(first).__name__}"
        )
    return _fill_one(spec, array)


def _fill_one(spec: TensorSpec, array: Array) -> Array:
    """Let a bare scalar stand for a tensor that has one element."""
    if array.ndim == 0 and all(size in (1, -1) for size in spec.shape):
        return array.reshape((1,) * len(spec.shape))
    return array


def row_count(tensor: Tensor) -> int:
    """Return the first dimension of a tensor."""
    return tensor.shape[0]


def is_empty(shape: Shape) -> bool:
    """Tell whether a tensor has no elements; such a tensor always goes inline."""
    return math.prod(shape) == 0
