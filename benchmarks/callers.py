"""What is measured: somebody who makes one call after another."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import numpy as np

from .workloads import Array, Tensors, Workload


@dataclass(frozen=True, slots=True)
class Turn:
    """What a caller did in its turn.

    Attributes:
        calls: how many calls it made.
        seconds: how long that took, if the caller knows better than a clock here.
        cpu_seconds: processor time, if it was not this process that called.
    """

    calls: int
    seconds: float | None = None
    cpu_seconds: float | None = None


class Caller(ABC):
    """Somebody who calls a model again and again with the same arrays.

    Args:
        inputs: what is sent; its contents may change between two calls.
    """

    def __init__(self, inputs: Tensors) -> None:
        self.inputs = inputs

    @abstractmethod
    async def call(self) -> object:
        """Make one call. This is what is measured."""

    async def turn(self, deadline: float) -> Turn:
        """Call as often as possible until a time of `time.perf_counter`, at least once."""
        count = 0
        while not count or time.perf_counter() < deadline:
            await self.call()
            count += 1
        return Turn(count)

    @abstractmethod
    async def outputs(self) -> Tensors:
        """Make one call and return what it gave, for verification."""

    async def verify(self, name: str) -> None:
        """Exit unless a model that copies gives back what was sent, twice with other contents."""
        for _ in range(2):
            outputs = await self.outputs()
            for key, expected in self.inputs.items():
                check(name, expected, outputs[key.replace("INPUT", "OUTPUT")])
                expected[...] = expected[..., ::-1].copy()


def check(name: str, expected: Array, got: Array) -> None:
    """Exit unless both arrays are the same, bit by bit."""
    is_same = expected.dtype == got.dtype and expected.shape == got.shape
    if not is_same or not np.array_equal(expected.view(np.uint32), got.view(np.uint32)):
        sys.exit(f"{name}: what came back is not what was sent; its time would mean nothing")


Opener = Callable[[str, str, Workload, int], AbstractAsyncContextManager[Sequence[Caller]]]
"""Opens callers: (url, name of the model, workload, how many) → those callers."""
