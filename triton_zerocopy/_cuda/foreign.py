"""Device tensors of other libraries, as views; ordered on their streams, never copied here.

By DLPack where there is one: the producer is told a stream of this library, and has it wait
for its own work (DLPack, Python specification, "Semantics of stream"). It does that in the
caller's thread, because a producer's current stream is that thread's. Otherwise by the CUDA
Array Interface (version 3, numba's documentation), which names the producer's stream instead.

An object that gives a tensor in host memory is not of this module: it is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from .._datatypes import datatype_of
from .._errors import InputError
from . import cudart, dlpack
from .arrays import DeviceArray
from .cudart import LEGACY_STREAM
from .streams import Streams
from .views import DeviceView, packed_strides

_ON_DEVICE = (dlpack.CUDA, dlpack.CUDA_MANAGED)


class StreamSource(Protocol):
    """A `Device`: it has streams that a producer can order its work before."""

    @property
    def id(self) -> int: ...
    @property
    def streams(self) -> Streams: ...


def is_device_tensor(value: object) -> bool:
    """Tell whether something is a tensor in device memory."""
    if isinstance(value, DeviceArray):
        return True
    if type(value) is np.ndarray:
        return False
    if hasattr(value, "__dlpack_device__"):
        return device_of(value)[0] in _ON_DEVICE
    return hasattr(value, "__cuda_array_interface__")


def device_of(value: Any) -> tuple[int, int]:
    """Return DLPack's device type and id of a tensor."""
    kind, number = value.__dlpack_device__()
    return int(kind), int(number)


def import_view(value: Any, device: StreamSource, where: str) -> DeviceView | DeviceArray:
    """Return a view of a device tensor, ordered after its producer's work.

    An array of this library is returned as it is: it is described when it is copied.

    Args:
        value: what `is_device_tensor` says yes to.
        device: whose streams copy it, if it is on that device.
        where: the beginning of messages.

    Raises:
        InputError: it cannot be taken, or Triton has no datatype for it.
    """
    if isinstance(value, DeviceArray):
        return value
    if hasattr(value, "__dlpack__"):
        return _by_dlpack(value, device, where)
    return _by_interface(value, where)


def _by_dlpack(value: Any, device: StreamSource, where: str) -> DeviceView:
    _, number = device_of(value)
    # On another device the legacy stream is named: it orders there, and needs no stream of ours.
    stream = device.streams.guest() if number == device.id else LEGACY_STREAM
    try:
        try:
            capsule = value.__dlpack__(stream=stream, max_version=dlpack.VERSION)
        except TypeError:  # from before DLPack 1
            capsule = value.__dlpack__(stream=stream)
    except Exception as error:
        raise InputError(
            f"{where}: this {type(value).__name__} cannot be exported through DLPack: {error}"
        ) from error
    view, kind = dlpack.take(capsule, where)
    if kind not in _ON_DEVICE:
        raise InputError(f"{where}: DLPack gave a tensor on device type {kind}, not on a GPU")
    _check_strides(view, where)
    if number == device.id:
        return replace(view, stream=stream)
    return replace(view, after=frozenset([LEGACY_STREAM]))


def _by_interface(value: Any, where: str) -> DeviceView:
    interface = value.__cuda_array_interface__
    try:
        shape = tuple(int(size) for size in interface["shape"])
        dtype = np.dtype(interface["typestr"])
        address, is_read_only = interface["data"]
        strides = interface.get("strides")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{where}: the __cuda_array_interface__ of this {type(value).__name__} cannot be "
            f"read: {error!r}"
        ) from error
    datatype = datatype_of(dtype)
    if datatype is None or dtype.hasobject or not dtype.isnative:
        raise InputError(f"{where}: Triton has no datatype for {dtype}")
    if interface.get("mask") is not None:
        raise InputError(f"{where}: a masked array cannot be sent")
    view = DeviceView(
        int(address or 0),
        shape,
        packed_strides(shape, dtype.itemsize) if strides is None else tuple(map(int, strides)),
        datatype,
        None,  # the interface does not tell; its address does
        keeper=value,
        after=_streams_of(interface),
        is_read_only=bool(is_read_only),
    )
    _check_strides(view, where)
    return view


def _streams_of(interface: Mapping[str, Any]) -> frozenset[int]:
    # Nothing said, as before version 3, may mean no more than that nobody thought of it.
    stream = interface.get("stream", LEGACY_STREAM)
    return frozenset() if stream is None else frozenset([int(stream)])


def _check_strides(view: DeviceView, where: str) -> None:
    if any(step < 0 for step, size in zip(view.strides, view.shape, strict=True) if size > 1):
        raise InputError(f"{where}: negative strides are not copied here; make it contiguous")


def locate(view: DeviceView) -> DeviceView:
    """Find out on which GPU a view is; in a device's thread.

    Raises:
        InputError: its address is not in the memory of any GPU.
    """
    if not view.address:
        return replace(view, device_id=0)  # nothing is there
    facts = cudart.pointer_facts(view.address)
    if not facts.is_device:
        raise InputError(
            "a __cuda_array_interface__ gave an address that is not in the memory of a GPU; was "
            "it freed?"
        )
    return replace(view, device_id=facts.device_id)


def stream_handle(stream: Any) -> int:
    """Return the handle of a stream of CUDA's, torch, CuPy or cuda.core, or of a plain number.

    Raises:
        InputError: it is no stream.
    """
    protocol: Any = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        handle: Any = protocol()[1]
    else:
        handle = getattr(stream, "cuda_stream", getattr(stream, "ptr", stream))
    if isinstance(handle, bool) or not hasattr(handle, "__int__"):
        raise InputError(
            f"a stream is torch's, CuPy's, cuda.core's or its handle as a number, got "
            f"{type(stream).__name__}"
        )
    return int(handle) or LEGACY_STREAM
