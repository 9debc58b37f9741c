"""Which measurements there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from .arguments import Options

_OWN_SIZES: Final = (1_000, 1_000_000, 16_000_000)


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement.

    Attributes:
        memory: as `Client.model` takes it.
        way: ``infer`` or ``lease``.
        callers: how many call at a time.
        size: bytes of an input with a variable dimension; None if shapes tell.
    """

    memory: str
    way: str
    callers: int
    size: int | None

    def __str__(self) -> str:
        return f"{kind_of(self.memory)} {self.way}, {self.callers} at a time"


def kind_of(memory: str) -> str:
    """Return what the command line calls a memory."""
    return "none" if memory == "wire" else memory


def with_defaults(options: Options) -> Options:
    """Fill in what was left open, which depends on whose model it is."""
    is_own = options.model is None
    memories: tuple[str, ...] = options.memories
    ways: tuple[str, ...] = options.ways
    if not memories:
        memories = ("wire", "system") if is_own and ways != ("lease",) else ("system",)
    if not ways:
        ways = ("infer", "lease") if is_own and memories != ("wire",) else ("infer",)
    sizes = options.sizes or (_OWN_SIZES if is_own else ())
    return replace(options, memories=memories, ways=ways, sizes=sizes)


def cells(options: Options) -> Sequence[Cell]:
    """Return all measurements, in the order in which they are made."""
    return [
        Cell(memory, way, callers, size)
        for size in options.sizes or (None,)
        for callers in options.concurrency
        for memory in options.memories
        for way in options.ways
        # A lease over the wire is memory of this process: there is no "in place".
        if not (memory == "wire" and way == "lease")
    ]
