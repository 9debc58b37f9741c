"""A server's answer is checked before it is believed; then its outputs are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from ._datatypes import BYTES, DTYPES, Array, Shape, byte_size_of, decode_bytes
from ._errors import InferenceError, InputError
from ._layout import OutputPlace
from ._requests import Request
from ._slots import as_tensor
from ._specs import TensorSpec
from ._transports.base import InferReply, OutputReply

Target = Callable[[TensorSpec, Shape], Array | None]
"""Returns the array that an output is copied into, None for a new one."""

_BYTES_COST: Final = 16
"""Parsing BYTES takes that much longer than copying as many bytes, at least."""


@dataclass(slots=True)
class Received:
    """One output that was checked against what was asked and reserved.

    Attributes:
        spec: the output.
        shape: the shape the server gave it.
        raw: its bytes: a view of the slot's room, or the inline bytes (read-only).
        is_inline: True if the bytes came with the message.
        ready: an array of it that was prepared before, if there is one.
    """

    spec: TensorSpec
    shape: Shape
    raw: Array
    is_inline: bool
    ready: Array | None = None

    def view(self) -> Array:
        """Return the tensor without a copy; BYTES are parsed from a private copy."""
        if self.ready is not None:
            return self.ready
        if self.spec.datatype == BYTES:
            return self.decode()[0]
        return as_tensor(self.raw, self.spec.dtype, self.shape)

    def decode(self) -> tuple[Array, int]:
        """Parse BYTES out of a copy; returns the array and the bytes it took."""
        return decode_bytes(self.raw.tobytes(), self.shape, exact=self.is_inline)

    def copy(self, target: Array | None = None) -> Array:
        """Return the tensor in memory of its own, in ``target`` if that is given."""
        view = self.view()
        if target is not None:
            np.copyto(target, view, casting="equiv")
            return target
        return view if self.spec.datatype == BYTES else view.copy()

    @property
    def copy_cost(self) -> int:
        """About how many bytes of a plain copy take as long as copying this."""
        return self.raw.nbytes * (_BYTES_COST if self.spec.datatype == BYTES else 1)


def check_reply(model: str, reply: InferReply, request: Request) -> list[Received]:
    """Match the outputs of a reply with the places that were asked for.

    Args:
        model: name for messages.
        reply: what the server answered.
        request: what it answered to.

    Raises:
        InferenceError: an output is missing, has another datatype, an impossible shape, or
            more bytes than there are.
    """
    replied = {output.name: output for output in reply.outputs}
    received = []
    for place, array in zip(request.outputs, request.ready, strict=True):
        output = replied.get(place.spec.name)
        if output is None:
            raise InferenceError(
                f"the server answered without output {place.spec.name!r}, it sent {list(replied)}",
                model=model,
            )
        if (
            array is not None
            and output.shape == array.shape
            and output.datatype == place.spec.datatype
        ):
            received.append(Received(place.spec, output.shape, array, is_inline=False, ready=array))
        else:
            received.append(_check_output(model, output, place, request.room))
    return received


def _check_output(
    model: str,
    output: OutputReply,
    place: OutputPlace,
    room: Callable[[OutputPlace], Array],
) -> Received:
    spec = place.spec
    if output.datatype != spec.datatype:
        raise InferenceError(
            f"output {spec.name!r} came as {output.datatype}, the metadata says {spec.datatype}",
            model=model,
        )
    if place.offset is not None:
        raw = room(place)
        expected = _check_shape(model, output, limit=raw.nbytes)
        if spec.datatype != BYTES:
            raw = raw[:expected]
        return Received(spec, output.shape, raw, is_inline=False)
    raw = np.frombuffer(output.data, np.uint8)
    expected = _check_shape(model, output, limit=raw.nbytes)
    if spec.datatype != BYTES and expected != raw.nbytes:
        raise InferenceError(
            f"output {spec.name!r} of shape {list(output.shape)} takes {expected} bytes, "
            f"{raw.nbytes} came",
            model=model,
        )
    return Received(spec, output.shape, raw, is_inline=True)


def _check_shape(model: str, output: OutputReply, *, limit: int) -> int:
    shape = output.shape
    if any(size < 0 for size in shape):
        raise InferenceError(
            f"output {output.name!r} came with the impossible shape {list(shape)}", model=model
        )
    if output.datatype == BYTES:
        needed = 4 * math.prod(shape)
    else:
        needed = byte_size_of(shape, output.datatype)
    if needed > limit:
        raise InferenceError(
            f"output {output.name!r} of shape {list(shape)} takes {needed} bytes, there are "
            f"{limit}",
            model=model,
        )
    return needed


def into(out: dict[str, Array], model: str) -> Target:
    """Return a target that puts outputs into the caller's own arrays."""

    def target(spec: TensorSpec, shape: Shape) -> Array | None:
        array = out.get(spec.name)
        if array is not None and array.shape != shape:
            raise InferenceError(
                f"the output {spec.name!r} came with shape {list(shape)}, the array given for it "
                f"in out= has {list(array.shape)}",
                model=model,
            )
        return array

    return target


def check_out(model: str, spec: TensorSpec, rows: int | None, array: object) -> Array:
    """Raise InputError unless ``array`` can receive an output as far as is known before."""
    where = f"model {model!r}, out={spec.name!r}"
    if not isinstance(array, np.ndarray):
        raise InputError(f"{where}: expected a numpy array, got {type(array).__name__}")
    if array.dtype.newbyteorder("=") != DTYPES[spec.datatype]:
        raise InputError(f"{where}: expected dtype {spec.dtype}, got {array.dtype}")
    if not array.flags.writeable:
        raise InputError(f"{where}: the array is read-only")
    expected = spec.shape if rows is None else (rows, *spec.shape[1:])
    if not TensorSpec(spec.name, spec.datatype, expected).accepts(array.shape):
        raise InputError(
            f"{where}: expected shape {list(expected)} (-1 is any), got {list(array.shape)}"
        )
    return array
