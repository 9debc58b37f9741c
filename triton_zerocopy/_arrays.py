"""Arrays over the places of a layout: numpy's in host memory, `DeviceArray` on a GPU.

What they are views of is a flat uint8 array or a `DeviceRoot`; both live as long as one of
their views does.
"""

from __future__ import annotations

from typing import Any

from ._cuda.arrays import DeviceArray
from ._cuda.memory import DeviceRoot
from ._datatypes import BYTES, Shape
from ._layout import InputPlace, OutputPlace
from ._specs import TensorSpec

Root = Any
"""A flat uint8 array or a `DeviceRoot`."""


def place_array(root: Root | None, place: InputPlace | OutputPlace) -> Any:
    """Return the array of a place inside ``root``; None if inline or of unknown shape."""
    if root is None or place.offset is None:
        return None
    flat = room_array(root, place)
    if place.spec.datatype == BYTES:
        return flat if isinstance(place, InputPlace) else None
    if place.shape is None:
        return None
    return as_tensor(flat, place.spec, place.shape)


def room_array(root: Root, place: InputPlace | OutputPlace) -> Any:
    """Return the flat bytes of a place."""
    assert place.offset is not None
    if isinstance(root, DeviceRoot):
        return DeviceArray(root, place.offset, (place.byte_size,), "UINT8")
    return root[place.offset : place.offset + place.byte_size]


def as_tensor(flat: Any, spec: TensorSpec, shape: Shape) -> Any:
    """View flat bytes as a tensor."""
    if isinstance(flat, DeviceArray):
        return flat.retyped(shape, spec.datatype)
    return flat.view(spec.dtype).reshape(shape)
