"""`Call`: one infer call as the caller asked for it, checked before anything is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ._cuda.foreign import StreamSource, is_device_tensor
from ._datatypes import Shape
from ._errors import InputError
from ._inputs import check_input, literal_size
from ._regions.base import RegionTensor
from ._replies import Target, check_out, into
from ._specs import ModelSpec, TensorSpec
from ._tensors import BytesTensor, DenseTensor, PlacedTensor, Tensor
from ._transports.base import CallOptions

_ON_LOOP_ELEMENTS: Final = 4096
"""Nested lists and strings up to this many elements are converted on the loop; a thousand
take some 0.1 ms."""

_REMEMBERED: Final = 256


@dataclass(frozen=True, slots=True, eq=False)
class CallKind:
    """What calls with inputs of the same kinds have in common; compared by identity.

    Attributes:
        specs: the inputs that are given, in the model's order.
        shapes: their shapes.
        rows: rows of the batch, None for a model that does not batch.
        outputs: names of the requested outputs.
        has_placed: True if an input is in a region of the caller's.
        is_oversized: True if there are more rows than the model takes at a time.
    """

    specs: Sequence[TensorSpec]
    shapes: Sequence[Shape]
    rows: int | None
    outputs: tuple[str, ...]
    has_placed: bool
    is_oversized: bool


@dataclass(slots=True)
class Call:
    """One infer call, or one part of it.

    Attributes:
        kind: what it has in common with others.
        tensors: the inputs, in the model's order.
        sent: those of them that are not in a region of the caller's.
        options: request id, priority and the like.
        target: where outputs are copied to; None for new arrays.
        given: the caller's own arrays for outputs, which the result has as they are.
        is_owned_by_caller: True if ``target`` gives the caller's own arrays, into which no
            copy may begin after the caller left.
        may_queue: True for parts of a batch, which wait whatever ``max_waiting`` says.
    """

    kind: CallKind
    tensors: Sequence[Tensor]
    sent: Sequence[Tensor]
    options: CallOptions
    target: Target | None = None
    given: Mapping[str, object] | None = None
    is_owned_by_caller: bool = False
    may_queue: bool = False


class CallChecker:
    """Checks calls against what a model takes and gives, and knows the kinds it has met.

    Args:
        spec: the model.
        device: the GPU of a model in device memory.
    """

    def __init__(self, spec: ModelSpec, device: StreamSource | None = None) -> None:
        self._spec = spec
        self._device = device
        self._kinds: dict[object, CallKind] = {}
        self._by_arrays: dict[object, CallKind] = {}

    def recall(self, inputs: Mapping[str, object], options: CallOptions) -> Call | None:
        """Return the call if it is like one before: numpy arrays in, all outputs wanted.

        Then nothing is left to check. None means only that it is not known.
        """
        kind = self._by_arrays.get(_key_of_arrays(inputs))
        if kind is None:
            return None
        arrays: Mapping[str, Any] = inputs
        tensors = [DenseTensor(spec, arrays[spec.name]) for spec in kind.specs]
        return Call(kind, tensors, tensors, options)

    def check(
        self,
        inputs: Mapping[str, object],
        outputs: Sequence[str] | None,
        options: CallOptions,
    ) -> Call:
        """Check a call.

        Raises:
            InputError: it does not fit.
        """
        spec = self._spec
        if not isinstance(inputs, Mapping):
            raise InputError(
                f"model {spec.name!r}: inputs is a mapping from name to value, got "
                f"{type(inputs).__name__}"
            )
        spec.check_input_names(inputs)
        wanted = spec.output_names if outputs is None else spec.check_output_names(outputs)
        tensors = []
        for name in spec.inputs:
            if name in inputs:
                tensor = check_input(spec, name, inputs[name], self._device)
                if type(tensor) is BytesTensor:
                    tensor.frame()
                tensors.append(tensor)
        call = self._call(tensors, wanted, options)
        key = _key_of_arrays(inputs)
        if outputs is None and key is not None and all(type(t) is DenseTensor for t in tensors):
            _remember(self._by_arrays, key, call.kind)
        return call

    def direct(self, call: Call, out: Mapping[str, object]) -> None:
        """Have outputs put into arrays of the caller's.

        In the caller's thread, whose stream tensors on a GPU are ordered after.

        Raises:
            InputError: they cannot receive them, as far as is known before.
        """
        spec, kind = self._spec, call.kind
        if out.keys() - set(kind.outputs):
            raise InputError(
                f"model {spec.name!r}: out= has {sorted(out)}, the requested outputs are "
                f"{sorted(kind.outputs)}"
            )
        checked = {
            name: check_out(spec.name, spec.outputs[name], kind.rows, array, self._device)
            for name, array in out.items()
        }
        call.target = into(checked, spec.name)
        call.given = out
        call.is_owned_by_caller = True

    def part(self, call: Call, start: int, stop: int, target: Target) -> Call:
        """Return the part from row ``start`` to before row ``stop``."""
        tensors = [tensor.rows(start, stop) for tensor in call.tensors]
        part = self._call(tensors, call.kind.outputs, call.options)
        part.target = target
        part.is_owned_by_caller = call.is_owned_by_caller
        return part

    def _call(
        self, tensors: Sequence[Tensor], outputs: tuple[str, ...], options: CallOptions
    ) -> Call:
        kind = self._kind(tensors, outputs)
        sent = tensors
        if kind.has_placed:
            sent = [tensor for tensor in tensors if not isinstance(tensor, PlacedTensor)]
        return Call(kind, tensors, sent, options)

    def _kind(self, tensors: Sequence[Tensor], outputs: tuple[str, ...]) -> CallKind:
        key = (outputs, *map(_key_of_tensor, tensors))
        kind = self._kinds.get(key)
        if kind is None:
            spec = self._spec
            rows = spec.rows_of({tensor.spec.name: tensor.shape for tensor in tensors})
            kind = CallKind(
                [tensor.spec for tensor in tensors],
                [tensor.shape for tensor in tensors],
                rows,
                outputs,
                any(isinstance(tensor, PlacedTensor) for tensor in tensors),
                rows is not None and rows > spec.max_batch_size,
            )
            _remember(self._kinds, key, kind)
        return kind


def is_heavy(inputs: Mapping[str, object]) -> bool:
    """Tell whether checking the inputs takes so long that it belongs off the loop."""
    if not isinstance(inputs, Mapping):
        return False
    is_long = False
    for value in inputs.values():
        if type(value) is np.ndarray and value.dtype.kind != "O":
            continue
        if _is_of_this_thread(value):
            return False
        is_long = is_long or literal_size(value) > _ON_LOOP_ELEMENTS
    return is_long


def _is_of_this_thread(value: object) -> bool:
    """Tell whether a value is on a GPU: its producer's current stream is the calling thread's."""
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    return isinstance(first, RegionTensor) or is_device_tensor(first)


def _key_of_arrays(inputs: Mapping[str, object]) -> object:
    """Return what decides the kind of a call that gives numpy arrays only; else None."""
    if type(inputs) is not dict:
        return None
    key: list[object] = []
    for name, value in inputs.items():
        if type(value) is not np.ndarray:
            return None
        key += (name, value.dtype, value.shape)
    return tuple(key)


def _key_of_tensor(tensor: Tensor) -> object:
    """Return what of an input decides its place."""
    if isinstance(tensor, BytesTensor):
        return tensor.spec.name, tensor.shape, tensor.byte_size
    return tensor.spec.name, tensor.shape, isinstance(tensor, PlacedTensor)


def _remember(known: dict[object, CallKind], key: object, kind: CallKind) -> None:
    if len(known) >= _REMEMBERED:
        known.clear()
    known[key] = kind
