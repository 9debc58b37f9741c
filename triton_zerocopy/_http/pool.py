"""The connections to one server: as many as there are calls at a time."""

from __future__ import annotations

import asyncio
import ssl as tls
from dataclasses import dataclass
from functools import partial
from typing import Final

from .connection import Connection
from .exchange import Done, Reader, Response
from .problems import ConnectionBroke, NotConnected

CONNECT_TIMEOUT: Final = 5.0
"""Seconds that one attempt to connect may take."""

TRIM_EVERY: Final = 30.0
"""Seconds after which connections that were not needed are closed. Proxies close them, too,
and a call that meets that ends without an answer."""

_BUFFER_BYTES: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect to.

    Attributes:
        host: name or address; empty for a Unix socket.
        port: TCP port.
        path: of the Unix socket.
    """

    host: str = ""
    port: int = 0
    path: str = ""


class Connections:
    """Connections to one server, made when needed; they belong to the running event loop."""

    def __init__(self, address: Address, ssl: tls.SSLContext | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._ssl = ssl
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._idle: list[Connection] = []
        self._fewest_idle = 0
        self._open: set[Connection] = set()
        self._connecting: set[asyncio.Task[Connection]] = set()
        self._trimming: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[None] | None = None

    def ask(self, message: bytes, done: Done, reader: Reader) -> None:
        """Send a request; ``done`` is called once, later, from the event loop."""
        idle = self._idle
        while idle:
            connection = idle.pop()  # the last one used: the others may be closed in time
            if not connection.is_closing():
                if len(idle) < self._fewest_idle:  # noqa: PLR1730 # less than half of a call
                    self._fewest_idle = len(idle)
                connection.send(message, done, reader)
                return
        if self._closed is not None:
            self._loop.call_soon(done, None, asyncio.CancelledError())
            return
        task = self._loop.create_task(self._connect())
        self._connecting.add(task)
        task.add_done_callback(partial(self._connected, message, done, reader))

    async def fetch(self, message: bytes, reader: Reader, *, timeout: float | None) -> Response:
        """Send a request and wait for what is read of the answer.

        Raises:
            TimeoutError: it took too long. The connection is used again after the answer.

        What the reader raises and explains is raised, too.
        """
        waiter: asyncio.Future[Response] = self._loop.create_future()

        def done(response: Response | None, error: BaseException | None) -> None:
            if waiter.done():
                return
            if response is not None:
                waiter.set_result(response)
            elif isinstance(error, Exception):
                waiter.set_exception(error)
            else:
                waiter.set_exception(reader.explain(ConnectionBroke("the client was closed")))

        self.ask(message, done, reader)
        async with asyncio.timeout(timeout):
            return await waiter

    # Making them

    async def _connect(self) -> Connection:
        address, ssl = self._address, self._ssl
        name = (address.host or "localhost") if ssl is not None else None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                if address.path:
                    _, connection = await self._loop.create_unix_connection(
                        self._make, address.path, ssl=ssl, server_hostname=name
                    )
                else:
                    _, connection = await self._loop.create_connection(
                        self._make, address.host, address.port, ssl=ssl, server_hostname=name
                    )
        except TimeoutError:
            raise NotConnected(f"it took more than {CONNECT_TIMEOUT:g} seconds") from None
        except (OSError, ValueError) as error:
            # ValueError is what a host name that cannot be one gives.
            raise NotConnected(str(error) or type(error).__name__) from error
        return connection

    def _make(self) -> Connection:
        return Connection(self._buffer, self._idle, self._open, self._one_less)

    def _connected(
        self, message: bytes, done: Done, reader: Reader, task: asyncio.Task[Connection]
    ) -> None:
        self._connecting.discard(task)
        if task.cancelled():
            done(None, asyncio.CancelledError())
            return
        problem = task.exception()
        if isinstance(problem, NotConnected):
            done(None, reader.explain(problem))
        elif problem is not None:
            done(None, problem)
        elif task.result().is_closing():
            done(None, reader.explain(NotConnected("the server closed the connection at once")))
        else:
            if self._trimming is None:
                self._trimming = self._loop.call_later(TRIM_EVERY, self._trim)
            task.result().send(message, done, reader)

    # Unmaking them

    def _one_less(self) -> None:
        if self._closed is not None and not self._open and not self._closed.done():
            self._closed.set_result(None)

    def _trim(self) -> None:
        """Close the connections that were idle all the time since this was done last."""
        unneeded = self._idle[: self._fewest_idle]
        del self._idle[: self._fewest_idle]
        for connection in unneeded:
            connection.close()
        self._fewest_idle = len(self._idle)
        self._trimming = (
            self._loop.call_later(TRIM_EVERY, self._trim)
            if len(self._open) > len(unneeded)
            else None
        )

    async def aclose(self) -> None:
        """Close all connections. Calls under way are given up."""
        if self._closed is not None:
            return
        self._closed = self._loop.create_future()
        if self._trimming is not None:
            self._trimming.cancel()
        for task in self._connecting:
            task.cancel()
        if self._connecting:
            await asyncio.wait(self._connecting)
        self._idle.clear()
        for connection in list(self._open):
            connection.close()
        if self._open:
            await self._closed
