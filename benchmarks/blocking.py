"""Callers of tritonclient's synchronous clients, each with a client in a thread of its own.

A turn is a loop in that thread, so that calls do not pay for a way there and back: that is the best
case. The HTTP client is built on gevent, and may be used in the thread that made it only.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from .callers import Caller, Turn
from .handmade import GRPC, HTTP, InlineRequest, ShmRequest
from .workloads import Tensors, Workload

Result = TypeVar("Result")


class Blocking(Caller):
    """Somebody who calls synchronously."""

    def __init__(self, inputs: Tensors, url: str, model: str, kit: Any) -> None:
        super().__init__(inputs)
        self._url = url
        self._model = model
        self._kit = kit
        self._client: Any = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="benchmark-caller")

    @abstractmethod
    def call_now(self) -> Tensors:
        """Make one call, in the thread."""

    def open_now(self) -> None:
        """Make the client, in the thread."""
        self._client = self._kit.InferenceServerClient(self._url)

    def close_now(self) -> None:
        """Close it there."""
        if self._client is not None:
            self._client.close()

    async def call(self) -> Tensors:
        return await self._do(self.call_now)

    async def outputs(self) -> Tensors:
        return await self.call()

    async def turn(self, deadline: float) -> Turn:
        def keep_calling() -> int:
            count = 0
            while not count or time.perf_counter() < deadline:
                self.call_now()
                count += 1
            return count

        return Turn(await self._do(keep_calling))

    async def open(self) -> None:
        await self._do(self.open_now)

    async def aclose(self) -> None:
        await self._do(self.close_now)
        self._thread.shutdown()

    async def _do(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class BlockingInline(Blocking):
    """Tensors inside the messages."""

    def open_now(self) -> None:
        super().open_now()
        self._request = InlineRequest(self.inputs, self._kit)

    def call_now(self) -> Tensors:
        request = self._request
        request.fill()
        return request.read(self._client.infer(self._model, request.inputs))


class BlockingByHand(Blocking):
    """One input and one output in shared memory."""

    def open_now(self) -> None:
        super().open_now()
        self._request = ShmRequest(self.inputs, self._kit)
        self._client.register_system_shared_memory(*self._request.registration)

    def close_now(self) -> None:
        self._client.unregister_system_shared_memory(self._request.region)
        self._request.close()
        super().close_now()

    def call_now(self) -> Tensors:
        request = self._request
        request.fill()
        self._client.infer(self._model, [request.input], outputs=[request.output])
        return {"OUTPUT0": request.read()}


def grpc_inline(url: str, name: str, workload: Workload, count: int) -> _Opened:
    return _opened(BlockingInline, GRPC, url, name, workload, count)


def grpc_by_hand(url: str, name: str, workload: Workload, count: int) -> _Opened:
    return _opened(BlockingByHand, GRPC, url, name, workload, count)


def http_inline(url: str, name: str, workload: Workload, count: int) -> _Opened:
    return _opened(BlockingInline, HTTP, url, name, workload, count)


def http_by_hand(url: str, name: str, workload: Workload, count: int) -> _Opened:
    return _opened(BlockingByHand, HTTP, url, name, workload, count)


_Opened = AbstractAsyncContextManager[Sequence[Caller]]


@asynccontextmanager
async def _opened(
    kind: type[Blocking], kit: Any, url: str, name: str, workload: Workload, count: int
) -> AsyncIterator[Sequence[Caller]]:
    callers: list[Blocking] = []
    try:
        for seed in range(count):
            caller = kind(workload.inputs(seed), url, name, kit)
            await caller.open()
            callers.append(caller)
        yield callers
    finally:
        for caller in callers:
            await caller.aclose()
