"""What a model takes and gives, as its server says: tensor names, datatypes, shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._datatypes import BYTES, DTYPES, Shape, byte_size_of
from ._errors import InputError


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: the tensor's name.
        datatype: Triton's name of the datatype, for example ``"FP32"``.
        shape: full shape, batch dimension included; -1 where it may vary.
        optional: True for an input that may be left out.
    """

    name: str
    datatype: str
    shape: Shape
    optional: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype of an array of this tensor (object for BYTES)."""
        return DTYPES[self.datatype]

    def accepts(self, shape: Sequence[int]) -> bool:
        """Tell whether a full shape fits this tensor."""
        own = self.shape
        if len(own) != len(shape):
            return False
        for mine, theirs in zip(own, shape, strict=True):
            if mine != theirs and (mine != -1 or theirs < 0):
                return False
        return True

    def shape_for(self, rows: int | None) -> Shape | None:
        """Return the shape of this tensor for a batch of ``rows``, None if it varies.

        ``rows`` is None for a model that does not batch.
        """
        shape = self.shape if rows is None else (rows, *self.shape[1:])
        return None if -1 in shape else shape

    def byte_size_for(self, rows: int | None) -> int | None:
        """Return the bytes of this tensor for a batch of ``rows``, None if they vary."""
        shape = self.shape_for(rows)
        if shape is None or self.datatype == BYTES:
            return None
        return byte_size_of(shape, self.datatype)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One version of a model, as the server's metadata and config describe it."""

    name: str
    version: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    max_batch_size: int = 0
    is_decoupled: bool = False
    is_ensemble: bool = False
    is_sequence: bool = False
    platform: str = ""
    output_names: tuple[str, ...] = ()
    _required: frozenset[str] = field(default=frozenset(), repr=False)

    @classmethod
    def make(
        cls,
        name: str,
        version: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        **rest: Any,
    ) -> ModelSpec:
        """Build a spec from tensor lists, refusing datatypes this package does not know."""
        for spec in (*inputs, *outputs):
            if spec.datatype not in DTYPES:
                raise InputError(
                    f"model {name!r}: tensor {spec.name!r} has datatype {spec.datatype!r}, "
                    f"which this version does not know"
                )
        return cls(
            name,
            version,
            {spec.name: spec for spec in inputs},
            {spec.name: spec for spec in outputs},
            output_names=tuple(spec.name for spec in outputs),
            _required=frozenset(spec.name for spec in inputs if not spec.optional),
            **rest,
        )

    def check_input_names(self, names: Mapping[str, object]) -> None:
        """Raise InputError unless all required inputs and no unknown ones are there."""
        if names.keys() == self.inputs.keys():
            return
        unknown = sorted(str(name) for name in names.keys() - self.inputs.keys())
        missing = sorted(self._required - names.keys())
        if unknown or missing:
            told = [f"unknown input {name!r}" for name in unknown]
            told += [f"missing input {name!r}" for name in missing]
            raise InputError(
                f"model {self.name!r}: {', '.join(told)}; its inputs are {sorted(self.inputs)}"
            )

    def check_output_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the requested outputs as a tuple, or raise InputError."""
        if isinstance(names, str):
            raise InputError(f"outputs is a sequence of names, got the string {names!r}")
        chosen = tuple(names)
        for name in chosen:
            if name not in self.outputs:
                raise InputError(
                    f"model {self.name!r}: unknown output {name!r}; "
                    f"its outputs are {sorted(self.outputs)}"
                )
        if len(set(chosen)) != len(chosen) or not chosen:
            raise InputError(
                f"model {self.name!r}: outputs must name at least one output and none twice, "
                f"got {list(chosen)}"
            )
        return chosen

    def rows_of(self, shapes: Mapping[str, Shape]) -> int | None:
        """Return the common number of rows of a batch, None if the model does not batch."""
        if self.max_batch_size == 0:
            return None
        rows = {name: shape[0] for name, shape in shapes.items()}
        if len(set(rows.values())) != 1:
            raise InputError(
                f"model {self.name!r}: all inputs must have the same number of rows, got {rows}"
            )
        count = next(iter(rows.values()))
        if count < 1:
            raise InputError(f"model {self.name!r}: a batch has at least one row, got {count}")
        return count

    def lease_shapes(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
        """Return the full shapes of all inputs that a lease has, given some of them.

        Raises:
            InputError: a shape does not fit, or one is needed and not given.
        """
        for name in shapes:
            if name not in self.inputs:
                raise InputError(
                    f"model {self.name!r}: unknown input {name!r} in shapes; its inputs are "
                    f"{sorted(self.inputs)}"
                )
            if self.inputs[name].datatype == BYTES:
                raise InputError(
                    f"model {self.name!r}, input {name!r}: BYTES have no fixed size; give them to "
                    "infer(inputs) instead of leasing them"
                )
        given = {name: tuple(int(size) for size in shape) for name, shape in shapes.items()}
        rows = self.rows_of(given) if given else None
        if rows is None and self.max_batch_size:
            rows = self.max_batch_size
        if rows is not None and rows > self.max_batch_size:
            raise InputError(
                f"model {self.name!r}: a lease has at most {self.max_batch_size} rows "
                f"(max_batch_size), got {rows}"
            )
        chosen: dict[str, Shape] = {}
        for name, tensor in self.inputs.items():
            shape = given.get(name)
            if shape is None and (tensor.optional or tensor.datatype == BYTES):
                continue
            shape = shape or tensor.shape_for(rows)
            if shape is None:
                raise InputError(
                    f"model {self.name!r}, input {name!r}: a lease needs its shape, which varies: "
                    f"{list(tensor.shape)}; pass shapes={{{name!r}: (...)}}"
                )
            if not tensor.accepts(shape):
                raise InputError(
                    f"model {self.name!r}, input {name!r}: expected shape {list(tensor.shape)} (-1 "
                    f"is any), got {list(shape)}"
                )
            chosen[name] = shape
        return chosen
