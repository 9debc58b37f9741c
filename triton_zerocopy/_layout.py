"""Where each tensor of a request lies in its slot. Arithmetic only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ._datatypes import BYTES, Shape
from ._specs import TensorSpec

ALIGNMENT: Final = 64
"""Bytes; a cache line, and what vectorised backends want."""

DEVICE_ALIGNMENT: Final = 256
"""Bytes; what cudaMalloc gives, and what kernels rely on."""

PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class InputPlace:
    """An input in a slot; without ``offset`` it goes inline."""

    spec: TensorSpec
    shape: Shape
    byte_size: int
    offset: int | None


@dataclass(frozen=True, slots=True)
class OutputPlace:
    """Room for an output in a slot; without ``offset`` it comes back inline.

    Attributes:
        spec: the output.
        shape: its shape where that follows from the inputs, else None.
        byte_size: the room, exact where ``shape`` is known.
        offset: where the room begins, in bytes from the slot's start.
    """

    spec: TensorSpec
    shape: Shape | None
    byte_size: int
    offset: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """All places of one kind of request; compared by identity, so it is a cheap key."""

    inputs: tuple[InputPlace, ...]
    outputs: tuple[OutputPlace, ...]
    byte_size: int


@dataclass(frozen=True, slots=True)
class Want:
    """A tensor that wants a place: its room in bytes, None to go inline."""

    spec: TensorSpec
    shape: Shape | None
    byte_size: int | None


def lay_out(inputs: Iterable[Want], outputs: Iterable[Want], alignment: int = ALIGNMENT) -> Layout:
    """Give each tensor its place: aligned, in order, none overlapping.

    Tensors without elements go inline: servers before 2.60 refuse them in shared memory.
    """
    end = 0

    def place(want: Want) -> tuple[int, int | None]:
        nonlocal end
        if not want.byte_size:
            return 0, None
        offset = end
        end = align(offset + want.byte_size, alignment)
        return want.byte_size, offset

    placed_inputs = []
    for want in inputs:
        assert want.shape is not None
        placed_inputs.append(InputPlace(want.spec, want.shape, *place(want)))
    placed_outputs = [OutputPlace(want.spec, want.shape, *place(want)) for want in outputs]
    return Layout(tuple(placed_inputs), tuple(placed_outputs), end)


def want_output(spec: TensorSpec, rows: int | None, room: int | None) -> Want:
    """Return what an output wants: its exact size if that is fixed, else ``room``."""
    exact = spec.byte_size_for(rows)
    shape = spec.shape_for(rows)
    return Want(
        spec, None if spec.datatype == BYTES else shape, exact if exact is not None else room
    )


def align(size: int, step: int) -> int:
    """Round up to a multiple of ``step``."""
    return -(-size // step) * step
