"""Small servers that answer HTTP as they are told to, well or badly."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import re
import threading
from contextlib import asynccontextmanager, contextmanager

BODY = (
    b'{"model_name":"m","model_version":"1","outputs":[{"name":"Y","datatype":"FP32","shape":[4]}]}'
)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;a=b\r\n%b\r\n%x\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:])
)
UNTIL_THE_END = b"HTTP/1.0 200 OK\r\n\r\n" + BODY
BINARY_JSON = (
    b'{"model_name":"m","model_version":"1","outputs":[{"name":"Y","datatype":"FP32","shape":[1],'
    b'"parameters":{"binary_data_size":4}}]}'
)
BINARY = (
    b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n%babcd"
    % (len(BINARY_JSON), len(BINARY_JSON) + 4, BINARY_JSON)
)


class Scripted:
    """A server that is told what to answer.

    Attributes:
        port: where it listens.
        connections: how many there were.
        requests: what it was sent.
    """

    def __init__(self, play):
        self._play = play
        self.port = 0
        self.connections = 0
        self.requests = []

    async def serve(self, reader, writer):
        self.connections += 1
        while not writer.is_closing():
            head = await reader.readuntil(b"\r\n\r\n")
            found = re.search(rb"Content-Length: (\d+)", head)
            body = await reader.readexactly(int(found[1])) if found else b""
            self.requests.append(head + body)
            await self._play(writer)


@asynccontextmanager
async def scripted(play, **options):
    """Serve: ``play(writer)`` answers each request; with bytes, these are the answer."""
    if isinstance(play, bytes):
        answer = play

        async def play(writer):
            writer.write(answer)

    server = Scripted(play)
    async with serving(server.serve, **options) as server.port:
        yield server


@asynccontextmanager
async def serving(serve, **options):
    """Serve connections by a function; yields the port."""
    tasks = set()

    async def serve_one(reader, writer):
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def accept(reader, writer):
        tasks.add(asyncio.create_task(serve_one(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def then_close(data):
    """Answer with this, and hang up."""

    async def play(writer):
        writer.write(data)
        writer.close()

    return play


@contextmanager
def tls_proxy(address, context):
    """Pass what comes over TLS on to another server, in a thread; yields the port.

    In a loop of its own, as asyncio reports handshakes that fail to the loop.
    """
    host, port = address.split(":")
    began = queue.Queue()

    async def forward(reader, writer):
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader, writer):
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(forward(reader, back), forward(there, writer))

    async def run():
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        loop.set_exception_handler(lambda *_: None)
        async with serving(serve, ssl=context) as own_port:
            began.put((own_port, lambda: loop.call_soon_threadsafe(end.set)))
            await end.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    own_port, finish = began.get(timeout=20)
    try:
        yield own_port
    finally:
        finish()
        thread.join()
