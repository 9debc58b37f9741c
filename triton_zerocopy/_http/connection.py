"""One kept connection with one call under way on it.

The way of a call is short: its bytes are written as they are, and an answer that is the
same to the byte as an earlier one is not parsed again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import httptools

from .exchange import Done, Reader, Response
from .problems import ConnectionBroke, HttpProblem, Malformed

MAX_HEAD: Final = 1 << 16
"""Bytes of an answer's status line and headers."""

MAX_BODY: Final = 2**31 - 1
"""Bytes of an answer's body, as many as gRPC takes."""

SMALL_ANSWER: Final = 1024
"""Answers of up to this many bytes may be known by heart."""

_PIECE: Final = 1 << 18
"""Larger requests are written in pieces, as fast as the server takes them."""

_NOTHING_KNOWN: Final[Mapping[bytes, Any]] = {}


class Connection(asyncio.BufferedProtocol):
    """A connection to a server. It is idle, or has one call under way, or is at its end.

    Args:
        buffer: what it receives into. Connections of one event loop may share one, as what is
            in it is taken out before anything else is received.
        idle: where it puts itself whenever it is free.
        all_open: where it is from its beginning to its end.
        lost: called after its end.
    """

    __slots__ = (
        "_all_open",
        "_body",
        "_buffer",
        "_done",
        "_has_head",
        "_headers",
        "_idle",
        "_is_complete",
        "_is_delimited",
        "_is_kept",
        "_is_paused",
        "_known",
        "_lost",
        "_parser",
        "_reader",
        "_received",
        "_rest",
        "_transport",
        "is_closing",
    )

    _parser: Any  # its type has no stubs for the callbacks

    def __init__(
        self,
        buffer: memoryview,
        idle: list[Connection],
        all_open: set[Connection],
        lost: Callable[[], None],
    ) -> None:
        self._buffer = buffer
        self._idle = idle
        self._all_open = all_open
        self._lost = lost
        self._parser = httptools.HttpResponseParser(self)
        self._done: Done | None = None
        self._reader: Reader | None = None
        self._known = _NOTHING_KNOWN
        self._rest: memoryview | None = None
        self._is_paused = False
        self._begin_answer()

    # Calls

    def send(self, message: bytes, done: Done, reader: Reader) -> None:
        """Write a request; ``done`` is called once, later."""
        self._done = done
        self._reader = reader
        if len(message) <= _PIECE:
            self._known = reader.known
            self._transport.write(message)
        else:
            self._rest = memoryview(message)
            self._write_on()

    def _write_on(self) -> None:
        while self._rest is not None and not self._is_paused:
            piece, rest = self._rest[:_PIECE], self._rest[_PIECE:]
            self._rest = rest or None
            self._transport.write(piece)

    def close(self) -> None:
        """Close it now. A call that is under way is given up, but not by the server."""
        done, self._done = self._done, None
        self._transport.abort()
        if done is not None:
            done(None, asyncio.CancelledError())

    # What the event loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own are not of it
        self.is_closing = transport.is_closing
        """True once it is closing; then what is written goes nowhere."""
        self._all_open.add(self)

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._write_on()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        # Room made anew for each answer, as for asyncio.Protocol, costs more than all else here.
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        data: bytes | memoryview = self._buffer[:nbytes]
        # Only while nothing of an answer has come yet is anything known.
        if nbytes <= SMALL_ANSWER:
            data = bytes(data)
            read = self._known.get(data)
            if read is not None:
                done = self._done
                assert done is not None
                self._known = _NOTHING_KNOWN
                self._done = None
                self._idle.append(self)
                done(read, None)
                return
        self._parse(data)

    def eof_received(self) -> None:
        if self._has_head and not self._is_delimited and self._done is not None:
            self._is_kept = False
            self._end_call(b"")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._parser = None  # it refers to this connection
        self._rest = None
        if self in self._idle:
            self._idle.remove(self)
        if self._done is not None:
            self._fail(ConnectionBroke("the connection broke before the whole answer was there"))
        self._all_open.discard(self)
        self._lost()

    # Answers

    def _begin_answer(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._body: bytes | bytearray = b""
        self._received = 0
        self._has_head = self._is_complete = self._is_delimited = False
        self._is_kept = True

    def _parse(self, data: bytes | memoryview) -> None:
        self._known = _NOTHING_KNOWN
        if self._done is None:
            self._transport.abort()  # nobody has asked
            return
        self._received += len(data)
        problem = self._feed(data)
        if self._is_complete:
            self._end_call(data)
        elif problem is not None:
            self._fail(problem)

    def _feed(self, data: bytes | memoryview) -> Malformed | None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not isinstance(error.__context__, _TooLong):
                return Malformed("the answer is not HTTP")
        else:
            if self._received <= (MAX_HEAD + MAX_BODY if self._has_head else MAX_HEAD):
                return None
        return Malformed("the answer is too long")

    def on_message_begin(self) -> None:
        """Called by the parser, as all that follow."""
        if self._is_complete:
            self._is_kept = False  # more than was asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:  # what follows a body is of no interest
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._has_head = True
        length = self._headers.get(b"content-length")
        self._is_delimited = length is not None or b"transfer-encoding" in self._headers
        if length is not None and int(length) > MAX_BODY:
            raise _TooLong

    def on_body(self, piece: bytes) -> None:
        if self._is_complete:
            return
        if not self._body:
            self._body = piece
            return
        if not isinstance(self._body, bytearray):
            self._body = bytearray(self._body)
        self._body += piece

    def on_message_complete(self) -> None:
        if self._is_complete:
            return
        status = self._parser.get_status_code()
        if status >= 200:
            self._is_complete = True
            self._is_kept = self._parser.should_keep_alive()
        else:
            # "100 Continue" and the like: the answer is still to come.
            self._headers = {}
            self._has_head = False

    def _end_call(self, data: bytes | memoryview) -> None:
        """Give the answer to the caller; ``data`` is what it ended with."""
        done, reader = self._done, self._reader
        assert done is not None
        assert reader is not None
        status = self._parser.get_status_code()
        response = Response(status, self._headers, self._body)
        is_whole = self._received == len(data)
        # An answer to a request that is not all sent yet: the server will not read the rest.
        is_kept = self._is_kept and self._rest is None
        self._done = self._rest = None
        self._begin_answer()
        if is_kept:
            self._idle.append(self)
        else:
            self._transport.abort()
        try:
            read = reader.read(response)
        except Exception as error:  # noqa: BLE001 # a callback has nobody to raise to
            done(None, error)
            return
        if is_kept and is_whole and isinstance(data, bytes):
            reader.learn(data, read)
        done(read, None)

    def _fail(self, problem: HttpProblem) -> None:
        done, reader = self._done, self._reader
        self._done = self._rest = None
        self._transport.abort()
        assert done is not None
        assert reader is not None
        done(None, reader.explain(problem))


class _TooLong(Exception):
    """Larger than what is taken."""
