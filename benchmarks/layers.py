"""One small call taken apart: its bytes sent by more and more of what `Model.infer` is made of.

The request is that of a lease, whose slot is registered for as long as its callers live, so all of
them send and receive the same bytes over HTTP, and what one takes more than the one before is what
was added. They use the library's inner parts, which no program should.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import triton_zerocopy as tz
from triton_zerocopy._transports.base import DEFAULT_OPTIONS
from triton_zerocopy._waiter import Waiter

from .callers import Caller, Opener
from .workloads import Tensors, Workload

_LONGEST = 1 << 16  # bytes of an answer; these have some 300


class _Layer(Caller):
    """A caller that sends a lease's request by itself."""

    def __init__(self, inputs: Tensors, lease: tz.Lease, model: tz.Model) -> None:
        super().__init__(inputs)
        self._lease = lease
        self._engine: Any = model._engine
        self._loop = asyncio.get_running_loop()
        plain: Any = lease._plain
        self._request = plain[0]
        self._message: bytes = self._request.plain

    async def open(self, url: str) -> None:
        """Connect, if that is not the library's part."""

    async def outputs(self) -> Tensors:
        for name, array in self.inputs.items():
            self._lease.inputs[name][...] = array
        await self.call()
        return {"OUTPUT0": self._request.ready[0].copy()}

    def close(self) -> None:
        """Close the connection."""


class _Blocking(_Layer):
    """A blocking socket: the kernel, and the server."""

    async def open(self, url: str) -> None:
        host, _, port = url.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def call(self) -> bytes:
        self._socket.send(self._message)
        return self._socket.recv(_LONGEST)

    def close(self) -> None:
        self._socket.close()


class _Bare(asyncio.BufferedProtocol):
    """The least of a protocol: what came is the answer."""

    future: asyncio.Future[bytes]

    def __init__(self) -> None:
        self._room = memoryview(bytearray(_LONGEST))

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        self.future.set_result(bytes(self._room[:nbytes]))


class _Loop(_Layer):
    """The event loop: a transport, a protocol, and a future that a task waits for."""

    async def open(self, url: str) -> None:
        host, _, port = url.rpartition(":")
        self._transport, self._protocol = await self._loop.create_connection(_Bare, host, int(port))

    async def call(self) -> bytes:
        future = self._protocol.future = self._loop.create_future()
        self._transport.write(self._message)
        return await future

    def close(self) -> None:
        self._transport.abort()


class _Transport(_Layer):
    """The library's transport: one of its connections, and answers that are read."""

    async def call(self) -> object:
        waiter: Waiter[object] = Waiter(self._loop)

        def done(reply: object, error: BaseException | None) -> None:
            if error is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(reply, at_once=True)

        self._engine.runtime.transport.infer(self._message, done)
        return await waiter


class _Engine(_Layer):
    """The slot: it is in flight meanwhile, and what becomes of it is decided."""

    async def call(self) -> object:
        slot = self._engine.acquire_nowait()
        try:
            return await self._engine.call(slot, self._message)
        finally:
            self._engine.unhold(slot)


class _Copies(_Layer):
    """The call itself: both copies, the check of the answer, and the result."""

    def __init__(self, inputs: Tensors, lease: tz.Lease, model: tz.Model) -> None:
        super().__init__(inputs, lease, model)
        self._executor: Any = model._executor
        self._call = self._executor.checker.check(inputs, None, DEFAULT_OPTIONS)

    async def call(self) -> tz.InferResult:
        result: tz.InferResult = await self._executor.run(self._call)
        return result

    async def outputs(self) -> Tensors:
        return dict(await self.call())


@asynccontextmanager
async def _opened(
    kind: type[_Layer], url: str, name: str, workload: Workload, count: int
) -> AsyncIterator[Sequence[Caller]]:
    assert count == 1
    shapes = {"INPUT0": workload.shape}
    async with (
        tz.Client(f"http://{url}") as client,
        client.model(name, memory="system", slots=2, shapes=shapes) as model,
        model.lease() as lease,
    ):
        await lease.infer()
        caller = kind(workload.inputs(0), lease, model)
        await caller.open(url)
        try:
            yield [caller]
        finally:
            caller.close()


blocking: Opener = partial(_opened, _Blocking)
event_loop: Opener = partial(_opened, _Loop)
transport: Opener = partial(_opened, _Transport)
engine: Opener = partial(_opened, _Engine)
copies: Opener = partial(_opened, _Copies)
