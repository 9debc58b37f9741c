"""`Call`: one infer call as the caller asked for it, checked before anything is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ._cuda.foreign import StreamSource, is_device_tensor
from ._datatypes import Shape
from ._errors import InputError
from ._inputs import check_input, literal_size
from ._regions.base import RegionTensor
from ._replies import Target, check_out, into
from ._specs import ModelSpec
from ._tensors import BytesTensor, PlacedTensor, Tensor
from ._transports.base import CallOptions

_ON_LOOP_ELEMENTS: Final = 4096
"""Nested lists and strings up to this many elements are converted on the loop; a thousand
take some 0.1 ms."""


@dataclass(slots=True)
class Call:
    """One infer call, or one part of it.

    Attributes:
        tensors: the inputs, in the model's order.
        shapes: their shapes.
        rows: rows of the batch, None for a model that does not batch.
        outputs: names of the requested outputs.
        options: request id, priority and the like.
        has_placed: True if an input is in a region of the caller's.
        target: where outputs are copied to; None for new arrays.
        given: the caller's own arrays for outputs, which the result has as they are.
        is_owned_by_caller: True if ``target`` gives the caller's own arrays, into which no
            copy may begin after the caller left.
        may_queue: True for parts of a batch, which wait whatever ``max_waiting`` says.
    """

    tensors: Sequence[Tensor]
    shapes: Sequence[Shape]
    rows: int | None
    outputs: tuple[str, ...]
    options: CallOptions
    has_placed: bool
    target: Target | None = None
    given: Mapping[str, object] | None = None
    is_owned_by_caller: bool = False
    may_queue: bool = False

    def part(self, start: int, stop: int, target: Target) -> Call:
        """Return the part from row ``start`` to before row ``stop``."""
        tensors = [tensor.rows(start, stop) for tensor in self.tensors]
        return Call(
            tensors,
            [tensor.shape for tensor in tensors],
            stop - start,
            self.outputs,
            self.options,
            self.has_placed,
            target,
            is_owned_by_caller=self.is_owned_by_caller,
        )


def is_heavy(inputs: Mapping[str, object], out: Mapping[str, object] | None) -> bool:
    """Tell whether checking the inputs takes so long that it belongs off the loop."""
    if not isinstance(inputs, dict) and not isinstance(inputs, Mapping):
        return False
    is_long = False
    for value in inputs.values():
        if type(value) is np.ndarray and value.dtype.kind != "O":
            continue
        if _is_of_this_thread(value):
            return False
        is_long = is_long or literal_size(value) > _ON_LOOP_ELEMENTS
    return is_long and not (out and any(_is_of_this_thread(value) for value in out.values()))


def _is_of_this_thread(value: object) -> bool:
    """Tell whether a value is on a GPU: its producer's current stream is the calling thread's."""
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    return isinstance(first, RegionTensor) or is_device_tensor(first)


def check_call(
    spec: ModelSpec,
    inputs: Mapping[str, object],
    outputs: Sequence[str] | None,
    out: Mapping[str, object] | None,
    options: CallOptions,
    device: StreamSource | None = None,
) -> Call:
    """Check a call against what the model takes and gives.

    ``device`` is the GPU of a model in device memory.

    Raises:
        InputError: it does not fit.
    """
    if not isinstance(inputs, dict) and not isinstance(inputs, Mapping):
        raise InputError(
            f"model {spec.name!r}: inputs is a mapping from name to value, got "
            f"{type(inputs).__name__}"
        )
    spec.check_input_names(inputs)
    wanted = spec.output_names if outputs is None else spec.check_output_names(outputs)
    tensors = []
    has_placed = False
    for name in spec.inputs:
        if name in inputs:
            tensor = check_input(spec, name, inputs[name], device)
            if type(tensor) is BytesTensor:
                tensor.frame()
            elif type(tensor) is PlacedTensor:
                has_placed = True
            tensors.append(tensor)
    rows = None
    if spec.max_batch_size:
        rows = spec.rows_of({tensor.spec.name: tensor.shape for tensor in tensors})
    call = Call(tensors, [tensor.shape for tensor in tensors], rows, wanted, options, has_placed)
    if out is not None:
        call.target = _target(spec, call, out, device)
        call.given = out
        call.is_owned_by_caller = True
    return call


def _target(
    spec: ModelSpec, call: Call, out: Mapping[str, object], device: StreamSource | None
) -> Target:
    if out.keys() - set(call.outputs):
        raise InputError(
            f"model {spec.name!r}: out= has {sorted(out)}, the requested outputs are "
            f"{sorted(call.outputs)}"
        )
    checked = {
        name: check_out(spec.name, spec.outputs[name], call.rows, array, device)
        for name, array in out.items()
    }
    return into(checked, spec.name)
