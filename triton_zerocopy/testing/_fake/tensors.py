"""Tensors as a request, a model and an answer have them; apart from the client's own code."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .refusals import invalid

Shape = tuple[int, ...]

ITEM_SIZE = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BF16": 2,
}
"""Bytes of an item by Triton's datatype; BYTES has no fixed size."""

NUMPY = {
    "BOOL": "bool",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BF16": "uint16",  # bit patterns
    "BYTES": "object",
} | {name: name.lower() for name in ITEM_SIZE if "INT" in name}
"""Name of the numpy type by Triton's datatype."""

_LENGTH = struct.Struct("<I")


class Source(Protocol):
    """Where the bytes of an input are."""

    @property
    def byte_size(self) -> int:
        """How many bytes, as the request says."""
        ...

    @property
    def on_device(self) -> bool:
        """Whether they are in a GPU's memory."""
        ...

    def read(self) -> bytes:
        """Return the bytes that are there now."""
        ...


class Target(Protocol):
    """Where the bytes of an output go."""

    @property
    def byte_size(self) -> int:
        """How many bytes fit."""
        ...

    def write(self, data: bytes) -> None:
        """Put the bytes there."""
        ...


@dataclass(frozen=True, slots=True)
class Inline:
    """Bytes that came in the message."""

    data: bytes

    @property
    def byte_size(self) -> int:
        return len(self.data)

    @property
    def on_device(self) -> bool:
        return False

    def read(self) -> bytes:
        return self.data


@dataclass(slots=True)
class Input:
    """An input of a request."""

    name: str
    datatype: str
    shape: Shape
    source: Source


@dataclass(slots=True)
class Requested:
    """An output that a request asks for.

    Attributes:
        name: The output's name.
        target: Memory that it goes to; None to have it in the answer.
        binary: Whether it comes as bytes, not as JSON; of HTTP only.
    """

    name: str
    target: Target | None = None
    binary: bool = False


@dataclass(slots=True)
class Output:
    """An output as the model returned it, and as it is answered."""

    name: str
    datatype: str
    shape: Shape
    data: bytes
    target: Target | None = None
    binary: bool = False


@dataclass(slots=True)
class Answer:
    """The answer to an infer request."""

    model_name: str
    model_version: str
    request_id: str
    outputs: list[Output] = field(default_factory=list[Output])


def byte_size_of(shape: Sequence[int], datatype: str) -> int:
    """Return the product of a shape and the item size, signs included as Triton has it."""
    return math.prod(shape) * ITEM_SIZE[datatype]


def pack(items: Sequence[bytes]) -> bytes:
    """Frame the elements of a BYTES tensor: a 4-byte length before each."""
    return b"".join(_LENGTH.pack(len(item)) + item for item in items)


def unpack(data: bytes, name: str) -> Iterator[bytes]:
    """Yield the elements of a BYTES tensor.

    Raises:
        Refusal: A length points past the end.
    """
    position = 0
    while position < len(data):
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        if position + length > len(data):
            raise invalid(
                f"incomplete string data for inference input '{name}', expecting string of length"
                f" {length} but only {len(data) - position} bytes available"
            )
        yield data[position : position + length]
        position += length
