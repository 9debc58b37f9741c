"""Infer calls over grpc.aio, driven by callbacks instead of by tasks of ours.

grpc.aio runs each call in a task already, so waiting for that through callbacks costs less than a
second task with a shield around it, and nobody's cancel can reach it.

Most of what grpc.aio does for a call is around one coroutine that does the work: a task, two more
rounds of the event loop, objects to ask questions later. A call that is alone goes straight to
that coroutine. It is not public, so this is done only with the releases of grpcio that it was
tried with; with others, all calls go the public way. So do calls that are not alone: their tasks
start them together, which is worth more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio

from .base import Done, InferReply, ServerError, without_region_names

_TRIED: Final = ((1, 81), (1, 85))
"""The first and the last release of grpcio whose inside is known."""

_CODES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


class Flights:
    """The calls of one method that are under way, with messages as bytes.

    Args:
        channel: where they go.
        method: its full name.
        headers: sent with each.
        parse: reads an answer.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        method: str,
        headers: tuple[tuple[str, str], ...],
        parse: Callable[[bytes], InferReply],
    ) -> None:
        self._call = channel.unary_unary(method)
        self._headers = headers
        self.parse = parse
        self.under_way = 0
        self._inside = inside_of(self._call)
        self._alone: Any = None

    def start(self, message: object, done: Done) -> None:
        """Send a message; ``done`` is called once, later."""
        if self._inside is None or self.under_way:
            steps: Any = self._call(message, metadata=self._headers).__await__()
        else:
            channel, method = self._inside
            self._alone = channel.call(method, None, None, None)
            steps = self._straight(self._alone, message)
        self.under_way += 1
        Flight(self, steps, done)

    async def _straight(self, call: Any, message: object) -> bytes:
        try:
            answer: bytes = await call.unary_unary(message, self._headers, None)
        finally:
            self._alone = None  # it keeps a closed channel's connection open
        if call.is_ok():
            return answer
        if call.is_locally_cancelled():
            raise asyncio.CancelledError
        status = await call.status()  # is there already
        raise ServerError(_CODES[status.code()], without_region_names(status.details() or ""))

    def cancel(self) -> None:
        """Give up the call that the channel does not know of, before it is closed."""
        if self._alone is not None:
            self._alone.cancel("the client was closed")


class Flight:
    """One call, driven through the steps of its awaitable or coroutine.

    Each step gives the future that is waited for; a task would do the same as this.
    """

    __slots__ = ("_done", "_flights", "_steps")

    def __init__(self, flights: Flights, steps: Any, done: Done) -> None:
        self._flights = flights
        self._steps = steps
        self._done = done
        self._step()

    def _step(self, _finished: object = None) -> None:
        reply: InferReply | None = None
        problem: BaseException | None = None
        try:
            future = self._steps.send(None)
        except StopIteration as end:
            try:
                reply = self._flights.parse(end.value)
            except Exception as error:  # noqa: BLE001 # a callback has nobody to raise to
                problem = ServerError("DATA_LOSS", f"unreadable answer: {error!r}")
        except grpc.RpcError as error:
            problem = server_error(error)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 # as below
            problem = error.with_traceback(None)  # which refers to this frame
        else:
            # As a task does on receiving it.
            future._asyncio_future_blocking = False  # noqa: SLF001
            future.add_done_callback(self._step)
            return
        self._flights.under_way -= 1
        # Not while one of those is handled: what the caller goes on to raise has nothing to do
        # with it.
        self._done(reply, problem)


def inside_of(call: object) -> tuple[Any, bytes] | None:
    """Return the channel and the method inside of a callable of grpc.aio, if they are known."""
    release = tuple(int(part) for part in grpc.__version__.split(".")[:2])
    if not _TRIED[0] <= release <= _TRIED[1]:
        return None
    channel: Any = getattr(call, "_channel", None)
    method: Any = getattr(call, "_method", None)
    return (channel, method) if hasattr(channel, "call") and isinstance(method, bytes) else None


def server_error(error: Any) -> ServerError:
    """Return an error of grpc.aio's as all transports give it."""
    return ServerError(error.code().name, without_region_names(error.details() or ""))
