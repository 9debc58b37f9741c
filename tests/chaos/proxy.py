"""`Proxy`: a link to a server that can be cut, slowed down, and made a black hole.

Only gRPC goes through it. The memory that client and server share does not, so a server whose
answer never arrives has written all the same: that is what makes a cut link dangerous.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from typing import Literal

REQUESTS, ANSWERS = "requests", "answers"
Direction = Literal["requests", "answers"]
_CHUNK = 1 << 16
_RESET = struct.pack("ii", 1, 0)  # linger for 0 seconds: close() sends RST


class Proxy:
    """Listens on a port of its own and passes connections on. It runs in a thread of its own.

    All changes have happened when the function that asked for them returns.

    Attributes:
        url: where it listens.
        ends: how often `stop_after` has taken effect.
    """

    def __init__(self, target):
        host, port = target.split(":")
        self._target = host, int(port)
        self.ends = 0
        self._links = set()
        self._swallows = {REQUESTS: False, ANSWERS: False}
        self._left = {REQUESTS: None, ANSWERS: None}
        self._ends_by = "silence"
        self._delay = 0.0
        self._passed = {REQUESTS: 0, ANSWERS: 0}

    def __enter__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self._port = self._server.sockets[0].getsockname()[1]
        self.url = f"127.0.0.1:{self._port}"
        return self

    def __exit__(self, *exc_info):
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # What can be looked at

    @property
    def connections(self):
        """How many there are now."""
        return len(self._links)

    @property
    def passed(self):
        """Bytes that went through so far, by direction."""
        return dict(self._passed)

    # What can go wrong

    def cut(self, by="reset"):
        """Cut all connections, by RST (`reset`) or FIN (`finish`); new ones work."""
        self._run(self._cut(by))

    def black_hole(self, *directions: Direction):
        """Swallow what comes, of old connections and new ones; both ways by default.

        What was swallowed is missing: `heal` cuts these connections.
        """
        self._run(self._swallow(directions or (REQUESTS, ANSWERS)))

    def stop_after(self, count, direction: Direction, *, by="silence"):
        """Pass so many more bytes in a direction; then swallow (`silence`) or cut.

        `by` is `silence`, `reset` or `finish`. A cut happens once: new connections work.
        """
        self._run(self._stop_after(count, direction, by))

    def delay(self, seconds):
        """Hold all that goes through for so long."""
        self._delay = seconds

    def heal(self, by="reset"):
        """Everything goes through again; connections that lost something are cut."""
        self._run(self._heal(by))

    # In its own thread

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _cut(self, by):
        for link in list(self._links):
            link.cut(by)

    async def _swallow(self, directions):
        for direction in directions:
            self._swallows[direction] = True

    async def _stop_after(self, count, direction, by):
        self._left[direction], self._ends_by = count, by

    async def _heal(self, by):
        self._swallows = dict.fromkeys(self._swallows, False)
        self._left = dict.fromkeys(self._left)
        self._delay = 0.0
        for link in list(self._links):
            if link.has_lost:
                link.cut(by)

    async def _end(self):
        self._server.close()
        tasks = [task for link in self._links for task in link.tasks]
        await self._cut("reset")
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the next turn

    async def _connected(self, reader, writer):
        link = _Link(writer)
        self._links.add(link)
        link.tasks.add(asyncio.current_task())
        try:
            if any(self._swallows.values()):
                link.has_lost = True
                while await reader.read(_CHUNK):
                    pass
                return
            their_reader, their_writer = await asyncio.open_connection(*self._target)
            link.writers.append(their_writer)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(link, reader, their_writer, REQUESTS))
                pumps.create_task(self._pump(link, their_reader, writer, ANSWERS))
        except* (OSError, _Over):
            pass
        finally:
            link.cut("reset")
            self._links.discard(link)

    async def _pump(self, link, reader, writer, direction):
        while data := await reader.read(_CHUNK):
            if self._delay:
                await asyncio.sleep(self._delay)
            left = self._left[direction]
            if left is not None:
                data, lost = data[:left], len(data) > left
                self._left[direction] = left - len(data)
                if lost:
                    await self._come_to_the_end(link, writer, data, direction)
                    continue
            if self._swallows[direction]:
                link.has_lost = True
                continue
            self._passed[direction] += len(data)
            writer.write(data)
            await writer.drain()
        link.cut("finish")
        raise _Over  # so the other direction ends, too

    async def _come_to_the_end(self, link, writer, data, direction):
        self._passed[direction] += len(data)
        with contextlib.suppress(OSError):
            writer.write(data)
            await writer.drain()
        self.ends += 1
        if self._ends_by == "silence":
            self._swallows[direction] = link.has_lost = True
        else:
            self._left[direction] = None
            link.cut(self._ends_by)


class _Over(Exception):
    pass


class _Link:
    """One connection of a client, and the one to the server that was made for it."""

    def __init__(self, writer):
        self.writers = [writer]
        self.tasks = set()
        self.has_lost = False

    def cut(self, by):
        for writer in self.writers:
            transport = writer.transport
            if transport.is_closing():
                continue
            if by == "finish":
                writer.close()
                continue
            plug = transport.get_extra_info("socket")
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            transport.abort()
