"""`Request`: one request on one slot, ready to be written and sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ._datatypes import Shape
from ._layout import OutputPlace
from ._received import Checked
from ._regions.base import Region
from ._tensors import PlacedTensor, Tensor
from ._transports.base import InputRef, MemoryRef


@dataclass(slots=True)
class Request:
    """A request on one slot, ready to go.

    Attributes:
        message: the transport's prepared message.
        shapes: shapes of the inputs, under which output sizes are remembered.
        writes: inputs that are copied to their arrays in the slot first.
        byte_size_written: how much that is.
        inline: inputs that go inside the message, in its order.
        placed: regions of the caller's that the message refers to.
        outputs: the requested outputs.
        ready: for each output its array, where its shape was known before.
        room: gives the flat bytes of an output's place.
        checked: the last reply to the same message.
    """

    message: object
    shapes: Sequence[Shape]
    writes: Sequence[tuple[Tensor, Any]]
    byte_size_written: int
    inline: Sequence[Tensor]
    placed: Sequence[Region]
    outputs: Sequence[OutputPlace]
    ready: Sequence[Any]
    room: Callable[[OutputPlace], Any]
    checked: Checked

    def write(self) -> None:
        """Copy the inputs to their places."""
        for tensor, array in self.writes:
            tensor.write(array)


def input_ref(tensor: Tensor, memory: MemoryRef | None) -> InputRef:
    """Return how a message names an input; the caller's own place goes before ``memory``."""
    if isinstance(tensor, PlacedTensor):
        source = tensor.source
        memory = MemoryRef(source.region.name, source.offset, source.byte_size)
    return InputRef(tensor.spec.name, tensor.spec.datatype, tensor.shape, memory)


async def settle_all(regions: Iterable[Region]) -> None:
    """Wait for what other libraries queued on memory that a request refers to."""
    queued = [region.settle() for region in regions if region.is_device_accessible]
    if queued:
        await asyncio.gather(*queued)
