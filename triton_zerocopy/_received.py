"""`Received`: one output that was checked, and the ways to read it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from ._arrays import as_tensor
from ._copying import Job, copy, copy_jobs
from ._datatypes import BYTES, Array, Shape, decode_bytes
from ._errors import InferenceError
from ._specs import TensorSpec
from ._transports.base import InferReply

_ELEMENT_COST: Final = 4096
"""Parsing one element of BYTES takes about as long as copying so many bytes."""


@dataclass(slots=True)
class Received:
    """One output that was checked against what was asked and reserved.

    Attributes:
        spec: the output.
        shape: the shape the server gave it.
        raw: its bytes: a view of the slot's room, or the inline bytes (a read-only numpy array).
        is_inline: True if the bytes came with the message.
        ready: an array of it that was prepared before, if there is one.
    """

    spec: TensorSpec
    shape: Shape
    raw: Any
    is_inline: bool
    ready: Any = None

    def view(self) -> Any:
        """Return the tensor without a copy; BYTES are parsed from a private copy."""
        if self.ready is not None:
            return self.ready
        if self.spec.datatype == BYTES:
            return self.decode()[0]
        return as_tensor(self.raw, self.spec, self.shape)

    def decode(self) -> tuple[Array, int]:
        """Parse BYTES out of a copy; returns the array and the bytes it took."""
        try:
            return decode_bytes(self.raw.tobytes(), self.shape, exact=self.is_inline)
        except InferenceError as error:
            raise InferenceError(f"output {self.spec.name!r}: {error.message()}") from None

    def copy(self, target: Array | None = None) -> Array:
        """Return the tensor in memory of its own, in ``target`` if that is given."""
        view: Array = self.view()
        if target is not None:
            copy(target, view)
            return target
        return view if self.spec.datatype == BYTES else view.copy()

    def jobs(self, target: Array) -> list[Job]:
        """Return copies of it into ``target`` that can be made at the same time."""
        if self.spec.datatype == BYTES:
            return [partial(self.copy, target)]
        return copy_jobs(target, self.view())

    @property
    def copy_cost(self) -> int:
        """About how many bytes of a plain copy take as long as copying this."""
        return int(self.raw.nbytes) + self.view_cost

    @property
    def view_cost(self) -> int:
        """The same for making a view, which is free but for BYTES."""
        return _ELEMENT_COST * math.prod(self.shape) if self.spec.datatype == BYTES else 0


@dataclass(slots=True)
class Checked:
    """The last reply to a prepared request, and what came of checking it.

    A transport gives the same object for an equal reply, which need not be checked again.

    Attributes:
        reply: the reply.
        outputs: the outputs, as `check_reply` returns them.
        copiers: for each its name and what returns a copy of it.
        copy_cost: what copying them costs, in bytes of a plain copy.
        has_inline: True if one of them came inside the message.
    """

    reply: InferReply | None = None
    outputs: Sequence[Received] = ()
    copiers: Sequence[tuple[str, Callable[[], Any]]] = ()
    copy_cost: int = 0
    has_inline: bool = False
