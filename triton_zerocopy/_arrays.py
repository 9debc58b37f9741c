"""Arrays over the places of a layout."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._datatypes import BYTES, Array
from ._layout import InputPlace, OutputPlace


def place_array(root: Array | None, place: InputPlace | OutputPlace) -> Array | None:
    """Return the array of a place inside ``root``; None if inline or of unknown shape."""
    if root is None or place.offset is None:
        return None
    flat = root[place.offset : place.offset + place.byte_size]
    if place.spec.datatype == BYTES:
        return flat if isinstance(place, InputPlace) else None
    if place.shape is None:
        return None
    return as_tensor(flat, place.spec.dtype, place.shape)


def as_tensor(flat: Array, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """View flat bytes as a tensor."""
    return flat.view(dtype).reshape(shape)
