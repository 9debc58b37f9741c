"""What callers may pass as an input, turned into checked tensors; nothing is sent here.

Nothing is cast or broadcast silently. Python literals have no datatype of their own, so
they take the model's where that loses nothing: integers must be in range, and floats are
rounded to the nearest value as a literal would be, but never to infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._cuda import dlpack
from ._cuda.foreign import StreamSource, device_of, import_view, is_device_tensor
from ._datatypes import BYTES, Array, Shape, byte_size_of, datatype_of
from ._errors import InputError
from ._regions.base import RegionTensor
from ._specs import ModelSpec, TensorSpec
from ._tensors import (
    BytesTensor,
    DenseTensor,
    DeviceSource,
    DeviceTensor,
    PlacedTensor,
    RowsTensor,
    Tensor,
)

_HOST_DEVICES = (dlpack.CPU, dlpack.CUDA_HOST)


def check_input(
    model: ModelSpec, name: str, value: object, device: StreamSource | None = None
) -> Tensor:
    """Turn one value into a checked tensor.

    Args:
        model: what the model takes.
        name: which input.
        value: what the caller gave.
        device: the GPU of a model in device memory; it takes device tensors. They are
            ordered after the calling thread's work, so this is called in the caller's thread.

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
    if is_device_tensor(value):
        view = _on_device(model, spec, value, device)
        _check_shape(model, spec, view.shape)
        return DeviceTensor.of(spec, view)
    if isinstance(value, np.generic):
        return _from_array(model, spec, _fill_one(spec, np.asarray(value)))
    if hasattr(value, "__dlpack__"):
        return _from_array(model, spec, _from_dlpack(model, spec, value))
    if isinstance(value, (list, tuple)):
        if value and is_device_tensor(value[0]):
            return _from_device_rows(model, spec, value, device)
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
    return DenseTensor(spec, array)


def _on_device(
    model: ModelSpec, spec: TensorSpec, value: object, device: StreamSource | None
) -> DeviceSource:
    where = _where(model, spec)
    if device is None:
        raise InputError(
            f"{where}: got a {type(value).__name__} in the memory of a GPU, but this model uses "
            "host memory; open it with memory='cuda:N', or copy the tensor to the host first"
        )
    view = import_view(value, device, where)
    if view.datatype != spec.datatype:
        raise _wrong_datatype(model, spec, view.datatype)
    return view


def _from_device_rows(
    model: ModelSpec, spec: TensorSpec, values: Sequence[object], device: StreamSource | None
) -> Tensor:
    row_spec = TensorSpec(spec.name, spec.datatype, spec.shape[1:])
    rows: list[DeviceSource] = []
    for index, value in enumerate(values):
        if not is_device_tensor(value):
            raise InputError(
                f"{_where(model, spec)}: row {index} is a {type(value).__name__} in host memory "
                "among rows on a GPU"
            )
        row = _on_device(model, spec, value, device)
        if not row_spec.accepts(row.shape) or (rows and row.shape != rows[0].shape):
            raise InputError(
                f"{_where(model, spec)}: expected rows of one shape {list(row_spec.shape)} "
                f"(-1 is any), got {list(row.shape)} in row {index}"
            )
        rows.append(row)
    _check_shape(model, spec, (len(rows), *rows[0].shape))
    return DeviceTensor.of_rows(spec, rows)


def _from_dlpack(model: ModelSpec, spec: TensorSpec, value: Any) -> Array:
    kind, number = device_of(value) if hasattr(value, "__dlpack_device__") else (dlpack.CPU, 0)
    if kind not in _HOST_DEVICES:
        raise InputError(
            f"{_where(model, spec)}: got a tensor on device ({kind}, {number}) of DLPack, which is "
            "neither the host nor a CUDA GPU; copy it to the host first"
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
        if is_device_tensor(value):
            raise InputError(f"{_where(model, spec)}: row {index} is on a GPU among host rows")
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
    value.region.join_caller()
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
