"""How large the outputs were whose size the model's metadata does not tell."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final

from ._datatypes import Shape

_REMEMBERED: Final = 1024


class OutputSizes:
    """Learned sizes of variable outputs, by output and input signature.

    A signature is the inputs' shapes with each dimension rounded up to a power of two. A
    size is remembered for the largest shapes of its signature: what was seen is scaled by
    the ratio of the rounded to the actual number of elements, then rounded up to a power
    of two. So an output that grows with its inputs still fits after the first call.

    Args:
        fixed: sizes in bytes that the caller set; they are used for any signature, until
            the server says that more is needed.
    """

    def __init__(self, fixed: Mapping[str, int]) -> None:
        self._fixed = dict(fixed)
        self._learned: OrderedDict[tuple[str, tuple[Shape, ...]], int] = OrderedDict()

    def room_for(self, output: str, shapes: Iterable[Shape]) -> int | None:
        """Return the bytes to reserve for an output, None if its size is not known yet."""
        if output in self._fixed:
            return self._fixed[output]
        return self._learned.get((output, _signature(shapes)))

    def learn(self, output: str, shapes: Iterable[Shape], byte_size: int) -> bool:
        """Remember that an output took ``byte_size`` bytes. Returns True if that is news."""
        if output in self._fixed:
            if byte_size <= self._fixed[output]:
                return False
            self._fixed[output] = byte_size
            return True
        shapes = tuple(shapes)
        signature = _signature(shapes)
        key = (output, signature)
        known = self._learned.get(key, 0)
        if byte_size <= known:
            self._learned.move_to_end(key)
            return False
        actual = max(1, sum(math.prod(shape) for shape in shapes))
        rounded = max(1, sum(math.prod(shape) for shape in signature))
        self._learned[key] = _power_of_two(math.ceil(byte_size * rounded / actual))
        self._learned.move_to_end(key)
        while len(self._learned) > _REMEMBERED:
            self._learned.popitem(last=False)
        return True


def _signature(shapes: Iterable[Shape]) -> tuple[Shape, ...]:
    return tuple(tuple(map(_power_of_two, shape)) for shape in shapes)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length() if size > 1 else size
