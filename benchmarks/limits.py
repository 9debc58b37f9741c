"""What no client that copies can do without: one copy in and one copy out, and no call at all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import numpy as np

from .callers import Caller, Opener
from .handmade import GRPC, ShmRequest
from .workloads import Array, Tensors, Workload


class TwoCopies(Caller):
    """Into shared memory and out of it, where nobody answers."""

    def __init__(self, inputs: Tensors, request: ShmRequest) -> None:
        super().__init__(inputs)
        self._request = request

    async def call(self) -> Array:
        self._request.fill()
        return self._request.read()

    async def outputs(self) -> Tensors:
        self._request.fill()
        self._request.answer_yourself()
        return {"OUTPUT0": self._request.read()}


class TwoCopiesInPlace(TwoCopies):
    """The same, the second copy into an array that was there before."""

    def __init__(self, inputs: Tensors, request: ShmRequest) -> None:
        super().__init__(inputs, request)
        (array,) = inputs.values()
        self._out = np.empty_like(array)

    async def call(self) -> Array:
        self._request.fill()
        self._request.read_into(self._out)
        return self._out


@asynccontextmanager
async def _opened(
    kind: type[TwoCopies], url: str, name: str, workload: Workload, count: int
) -> AsyncIterator[Sequence[Caller]]:
    """Callers without a server, each with a region of its own."""
    del url, name
    callers: list[TwoCopies] = []
    requests: list[ShmRequest] = []
    try:
        for seed in range(count):
            inputs = workload.inputs(seed)
            requests.append(ShmRequest(inputs, GRPC))
            callers.append(kind(inputs, requests[-1]))
        yield callers
    finally:
        for request in requests:
            request.close()


copies: Opener = partial(_opened, TwoCopies)
copies_in_place: Opener = partial(_opened, TwoCopiesInPlace)
