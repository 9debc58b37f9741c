"""A server's answer is checked before it is believed; then its outputs are read."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ._datatypes import BYTES, DTYPES, Array, Shape, byte_size_of
from ._errors import InferenceError, InputError
from ._layout import OutputPlace
from ._received import Checked, Received
from ._requests import Request
from ._specs import TensorSpec
from ._transports.base import InferReply, OutputReply

Target = Callable[[TensorSpec, Shape], Array | None]
"""Returns the array that an output is copied into, None for a new one."""


def check_reply(model: str, reply: InferReply, request: Request) -> Checked:
    """Match the outputs of a reply with the places that were asked for.

    Args:
        model: name for messages.
        reply: what the server answered.
        request: what it answered to.

    Raises:
        InferenceError: an output is missing, has another datatype, an impossible shape, or
            more bytes than there are.
    """
    checked = request.checked
    if checked.reply is reply:
        return checked
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
    checked.reply = reply
    checked.outputs = received
    checked.has_inline = any(output.is_inline for output in received)
    checked.copy_cost = sum(output.copy_cost for output in received)
    return checked


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
