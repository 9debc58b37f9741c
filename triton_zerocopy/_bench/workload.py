"""Inputs for a model, made from what the model says it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .._datatypes import BYTES, Shape, byte_size_of, encode_bytes
from .._model import Model
from .._specs import TensorSpec
from .arguments import Options
from .failures import BenchError

Array = npt.NDArray[Any]

_LETTERS: Final = 16
"""Length of a random element of BYTES."""
_FRAME: Final = 4
"""Bytes before each of them, which say its length."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What every caller sends.

    Attributes:
        inputs: arrays by name.
        leased: shapes of those that a lease has a place for: all but BYTES.
        input_bytes: bytes of all inputs.
    """

    inputs: Mapping[str, Array]
    leased: Mapping[str, Shape]
    input_bytes: int

    @property
    def unleased(self) -> Mapping[str, Array]:
        """Those that a lease is given at each call."""
        return {name: array for name, array in self.inputs.items() if name not in self.leased}


def make_workload(model: Model, options: Options, size: int | None) -> Workload:
    """Make inputs for a model.

    Raises:
        BenchError: a shape is missing, or does not fit.
    """
    for name in options.shapes:
        if name not in model.inputs:
            raise BenchError(
                f"--shape {name}:...: model {model.name!r} has no such input; it has "
                f"{', '.join(model.inputs)}"
            )
    shapes = _shapes(model, options, size)
    random = np.random.default_rng(0)
    inputs = {
        name: _contents(model.inputs[name], shape, random if options.data == "random" else None)
        for name, shape in shapes.items()
    }
    leased = {name: shape for name, shape in shapes.items() if not _is_bytes(model.inputs[name])}
    return Workload(inputs, leased, sum(byte_size(array) for array in inputs.values()))


def byte_size(array: object) -> int:
    """Return the bytes of an input or an output as Triton counts them."""
    if not isinstance(array, np.ndarray):  # on a GPU
        shape: Shape = array.shape  # type: ignore[attr-defined]
        return byte_size_of(shape, array.datatype)  # type: ignore[attr-defined]
    if array.dtype.kind == "O":
        return len(encode_bytes(array))
    return int(array.nbytes)


def _shapes(model: Model, options: Options, size: int | None) -> dict[str, Shape]:
    rows = (options.batch or 1) if model.max_batch_size else None
    if options.batch and rows is None:
        raise BenchError(f"-b {options.batch}: model {model.name!r} does not batch")
    shapes: dict[str, Shape] = {}
    is_sized = False
    for name, spec in model.inputs.items():
        shape = options.shapes.get(name)
        if shape is not None:
            if not spec.accepts(shape):
                raise BenchError(
                    f"--shape {name}:{_plain(shape)}: model {model.name!r} takes {_told(spec)}, "
                    f"where -1 is any{' and the first is the batch' if rows else ''}"
                )
        elif spec.optional:
            continue
        else:
            shape = spec.shape_for(rows)
        if shape is None:
            full = spec.shape if rows is None else (rows, *spec.shape[1:])
            if size is None or full.count(-1) != 1:
                example = _plain(tuple(16 if item == -1 else item for item in full))
                sizes = ", or --sizes for its bytes" if full.count(-1) == 1 else ""
                raise BenchError(
                    f"model {model.name!r}, input {name!r}: its shape varies, {_told(spec)}; say "
                    f"which with --shape {name}:{example}{sizes}"
                )
            is_sized = True
            shape = _sized(spec, full, size)
        shapes[name] = shape
    if size is not None and not is_sized:
        raise BenchError(
            f"--sizes: model {model.name!r} has no input with one variable dimension whose shape "
            "is not given; leave --sizes out"
        )
    return shapes


def _sized(spec: TensorSpec, shape: Shape, size: int) -> Shape:
    """Return a shape of about so many bytes, at least of one item."""
    item = _LETTERS + _FRAME if _is_bytes(spec) else spec.dtype.itemsize
    row = item * math.prod(length for length in shape if length != -1)
    return tuple(max(1, size // row) if length == -1 else length for length in shape)


def _contents(spec: TensorSpec, shape: Shape, random: np.random.Generator | None) -> Array:
    """Make an array: of zeros, or of random numbers that few models choke on."""
    if _is_bytes(spec):
        array = np.empty(shape, np.object_)
        for index in np.ndindex(shape):
            array[index] = b"" if random is None else _letters(random)
        return array
    if random is None:
        return np.zeros(shape, spec.dtype)
    if spec.datatype == "BOOL":
        return random.integers(2, size=shape).astype(np.bool_)
    if spec.dtype.kind in "iu":  # often indices: small ones exist
        return random.integers(10, size=shape, dtype=np.int64).astype(spec.dtype)
    return random.random(shape, dtype=np.float32).astype(spec.dtype, copy=False)


def _letters(random: np.random.Generator) -> bytes:
    return (random.integers(26, size=_LETTERS, dtype=np.uint8) + ord("a")).tobytes()


def _is_bytes(spec: TensorSpec) -> bool:
    return spec.datatype == BYTES


def _told(spec: TensorSpec) -> str:
    return f"{spec.datatype} {list(spec.shape)}"


def _plain(shape: Shape) -> str:
    return ",".join(map(str, shape))
