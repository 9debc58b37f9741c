"""A copy between two strided tensors, as few plain copies. Arithmetic only.

CUDA copies bytes that lie together, or pieces of one width that lie a pitch apart. A copy of
any layout is a number of these: dimensions that follow each other in both tensors are merged,
the innermost one gives the width, the longest of the others the height, and the rest are
gone through.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final

from .._datatypes import Shape
from .._errors import InputError

MOST_PIECES: Final = 4096
"""Each takes some microseconds to queue; more of them are a case for a kernel."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A plain copy: ``height`` times ``width`` bytes, at offsets from the two tensors' starts."""

    target: int
    source: int
    width: int
    height: int = 1
    target_pitch: int = 0
    source_pitch: int = 0


def plan_copy(
    shape: Shape, itemsize: int, target: Shape, source: Shape, *, has_pitch: bool = True
) -> list[Piece]:
    """Return the plain copies that copy a tensor.

    Args:
        shape: of both.
        itemsize: bytes of an element.
        target: strides of the target in bytes.
        source: strides of the source in bytes.
        has_pitch: False if only bytes that lie together can be copied in one go, as between
            two GPUs.

    Raises:
        InputError: it would take more than MOST_PIECES copies.
    """
    if 0 in shape:
        return []
    dimensions = _merge(shape, target, source)
    width = itemsize
    if dimensions and dimensions[-1][1:] == (itemsize, itemsize):
        width *= dimensions.pop()[0]
    height, target_pitch, source_pitch = 1, 0, 0
    fitting = [each for each in dimensions if min(each[1], each[2]) >= width]
    if has_pitch and fitting:
        longest = max(fitting, key=lambda each: each[0])
        dimensions.remove(longest)
        height, target_pitch, source_pitch = longest
    count = 1
    for size, _, _ in dimensions:
        count *= size
    if count > MOST_PIECES:
        raise InputError(
            f"a tensor of shape {list(shape)} with strides {list(source)} bytes cannot be copied "
            f"efficiently to one with strides {list(target)}; make it contiguous first"
        )
    pieces = []
    for index in itertools.product(*(range(size) for size, _, _ in dimensions)):
        places = list(zip(index, dimensions, strict=True))
        pieces.append(
            Piece(
                sum(number * each[1] for number, each in places),
                sum(number * each[2] for number, each in places),
                width,
                height,
                target_pitch,
                source_pitch,
            )
        )
    return pieces


def _merge(shape: Shape, target: Shape, source: Shape) -> list[tuple[int, int, int]]:
    """Return (size, target stride, source stride) with what follows each other as one."""
    merged: list[tuple[int, int, int]] = []
    for size, to, of in zip(shape, target, source, strict=True):
        if size == 1:
            continue  # its stride means nothing
        if merged and merged[-1][1] == size * to and merged[-1][2] == size * of:
            merged[-1] = (merged[-1][0] * size, to, of)
        else:
            merged.append((size, to, of))
    return merged
