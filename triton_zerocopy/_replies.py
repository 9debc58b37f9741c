"""A server's answer is checked before it is believed; then its outputs are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from ._cuda.foreign import StreamSource, import_view, is_device_tensor
from ._cuda.views import DeviceView
from ._datatypes import BYTES, DTYPES, Array, Shape, byte_size_of
from ._errors import InferenceError, InputError
from ._layout import OutputPlace
from ._received import Checked, Received
from ._requests import Request
from ._specs import TensorSpec
from ._tensors import DeviceSource
from ._transports.base import InferReply, OutputReply

Target = Callable[[TensorSpec, Shape], Any]
"""Returns the array, or the tensor on a GPU, that an output is copied into; None for a new one."""

_MOST_DIMENSIONS: Final = 32  # of a numpy array before numpy 2
_MOST_ELEMENTS: Final = 2**55  # more than any address space has


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
                f"the server answered without output {place.spec.name!r}, it sent "
                f"{list(replied)!s:.500}",
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
    checked.copiers = [
        (output.spec.name, output.ready.copy if type(output.ready) is np.ndarray else output.copy)
        for output in received
    ]
    checked.has_inline = any(output.is_inline for output in received)
    checked.copy_cost = sum(output.copy_cost for output in received)
    return checked


def _check_output(
    model: str,
    output: OutputReply,
    place: OutputPlace,
    room: Callable[[OutputPlace], Any],
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
    if len(shape) > _MOST_DIMENSIONS:
        raise InferenceError(
            f"output {output.name!r} came with {len(shape)} dimensions", model=model
        )
    # Zeros do not make the other sizes possible.
    if any(size < 0 for size in shape) or math.prod(size or 1 for size in shape) > _MOST_ELEMENTS:
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


def into(out: Mapping[str, Array | DeviceSource], model: str) -> Target:
    """Return a target that puts outputs into the caller's own arrays."""

    def target(spec: TensorSpec, shape: Shape) -> Array | DeviceSource | None:
        array = out.get(spec.name)
        if array is not None and array.shape != shape:
            raise InferenceError(
                f"the output {spec.name!r} came with shape {list(shape)}, the array given for it "
                f"in out= has {list(array.shape)}",
                model=model,
            )
        return array

    return target


def check_out(
    model: str, spec: TensorSpec, rows: int | None, array: object, device: StreamSource | None
) -> Array | DeviceSource:
    """Return what receives an output, or raise InputError, as far as is known before."""
    where = f"model {model!r}, out={spec.name!r}"
    if is_device_tensor(array):
        return _check_device_out(where, spec, rows, array, device)
    if not isinstance(array, np.ndarray):
        raise InputError(f"{where}: expected a numpy array, got {type(array).__name__}")
    if array.dtype.newbyteorder("=") != DTYPES[spec.datatype]:
        raise InputError(f"{where}: expected dtype {spec.dtype}, got {array.dtype}")
    if not array.flags.writeable:
        raise InputError(f"{where}: the array is read-only")
    _check_out_shape(where, spec, rows, array.shape)
    return array


def _check_device_out(
    where: str, spec: TensorSpec, rows: int | None, value: object, device: StreamSource | None
) -> DeviceSource:
    if device is None:
        raise InputError(
            f"{where}: a {type(value).__name__} in the memory of a GPU cannot receive an output of "
            "a model in host memory; open it with memory='cuda:N', or pass a numpy array"
        )
    view = import_view(value, device, where)
    if view.datatype != spec.datatype:
        raise InputError(f"{where}: expected {spec.datatype}, got {view.datatype}")
    if isinstance(view, DeviceView) and view.is_read_only:
        raise InputError(f"{where}: the tensor is read-only")
    if isinstance(view, DeviceView) and _overlaps(view):
        raise InputError(f"{where}: elements of the tensor share memory (a stride of 0)")
    _check_out_shape(where, spec, rows, view.shape)
    return view


def _overlaps(view: DeviceView) -> bool:
    return any(step == 0 and size > 1 for step, size in zip(view.strides, view.shape, strict=True))


def _check_out_shape(where: str, spec: TensorSpec, rows: int | None, shape: Shape) -> None:
    expected = spec.shape if rows is None else (rows, *spec.shape[1:])
    if not TensorSpec(spec.name, spec.datatype, expected).accepts(shape):
        raise InputError(f"{where}: expected shape {list(expected)} (-1 is any), got {list(shape)}")
