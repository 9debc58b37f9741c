"""`Request`: one request on one slot, ready to be written and sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._copying import Job
from ._datatypes import Shape
from ._layout import OutputPlace
from ._received import Checked
from ._regions.base import Region
from ._tensors import PlacedTensor, Tensor
from ._transports.base import InputRef, MemoryRef


@dataclass(slots=True)
class Request:
    """A request on one slot, to be sent again and again.

    Attributes:
        outputs: the requested outputs.
        ready: for each output its array, where its shape was known before.
        room: gives the flat bytes of an output's place.
        prepared: what the transport prepared.
        plain: the message of a call without options, if nothing has to be added and the copies
            are small enough for the event loop; else None.
        shapes: shapes of the inputs, under which output sizes are remembered.
        targets: for each input that a call gives its array in the slot, flat bytes for BYTES;
            None if it goes inside the message.
        placed: regions of the caller's that the message refers to.
        checked: the last reply to it.
    """

    outputs: Sequence[OutputPlace]
    ready: Sequence[Any]
    room: Callable[[OutputPlace], Any]
    prepared: object = None
    plain: object = None
    shapes: Sequence[Shape] = ()
    targets: Sequence[Any] = ()
    placed: Sequence[Region] = ()
    checked: Checked = field(default_factory=Checked)

    def write(self, tensors: Sequence[Tensor]) -> None:
        """Copy inputs to their places."""
        for tensor, array in zip(tensors, self.targets):  # noqa: B905 # strict costs as much again
            if array is not None:
                tensor.write(array)

    def jobs(self, tensors: Sequence[Tensor]) -> list[Job]:
        """Return the same as what can be done at the same time."""
        pairs = zip(tensors, self.targets, strict=True)
        return [job for tensor, array in pairs if array is not None for job in tensor.jobs(array)]

    @property
    def byte_size_written(self) -> int:
        """How many bytes that copies."""
        return sum(array.nbytes for array in self.targets if array is not None)

    def inline(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the inputs that go inside the message, in its order."""
        pairs = zip(tensors, self.targets, strict=True)
        return [tensor for tensor, array in pairs if array is None]


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
