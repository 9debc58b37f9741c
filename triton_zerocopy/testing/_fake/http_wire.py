"""HTTP/1.1 as far as Triton's clients speak it: requests with a length, kept connections."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

_REQUEST_LINE = re.compile(rb"([A-Z]+) (/[\x21-\x7e]*) HTTP/1\.([01])")
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")

LONGEST_HEAD = 1 << 16
"""Bytes of a request's line and headers."""


class BadRequest(Exception):
    """This is no HTTP that is spoken here; the connection is closed without a word."""


@dataclass(frozen=True)
class Request:
    """A request.

    Attributes:
        method: As `GET`.
        path: As it came, nothing in it decoded.
        headers: By their names in lower case.
        body: All of it.
        is_kept: Whether the connection serves more requests.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    is_kept: bool


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        status: The status code.
        body: All of it.
        content_type: The header, if it was set before anything else; the default comes last.
        headers: More headers.
    """

    status: HTTPStatus = HTTPStatus.OK
    body: bytes = b""
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    def serialize(self, request: Request) -> bytes:
        """Return the bytes of it, in Triton's order of headers."""
        headers = [] if request.is_kept else [("Connection", "close")]
        if self.content_type is not None:
            headers.append(("Content-Type", self.content_type))
        headers += [*self.headers.items(), ("Content-Length", str(len(self.body)))]
        if self.content_type is None:
            headers.append(("Content-Type", "text/plain"))
        reason = "Not Allowed" if self.status == 405 else self.status.phrase
        lines = [f"HTTP/1.1 {self.status.value} {reason}", *(f"{k}: {v}" for k, v in headers)]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + self.body


async def read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Request | None:
    """Read the next request of a connection; None if there is none.

    Raises:
        BadRequest: It is not understood.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as end:
        if end.partial:
            raise BadRequest("the connection ends within a request") from end
        return None
    except asyncio.LimitOverrunError as error:
        raise BadRequest("the headers are too long") from error
    first, *rest = head[:-4].split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise BadRequest(f"no request line: {first!r}")
    headers: dict[str, str] = {}
    for each in rest:
        found = _HEADER.fullmatch(each)
        if found is None:
            raise BadRequest(f"no header: {each!r}")
        headers[found[1].decode("ascii").lower()] = found[2].decode("latin-1")
    if "transfer-encoding" in headers:
        raise BadRequest("FakeTriton does not play chunked requests")
    length = headers.get("content-length", "0")
    if not length.isdecimal():
        raise BadRequest(f"no length: {length!r}")
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        body = await reader.readexactly(int(length))
    except asyncio.IncompleteReadError as error:
        raise BadRequest("the connection ends within a body") from error
    connection = headers.get("connection", "").lower()
    is_kept = connection != "close" and (line[3] == b"1" or connection == "keep-alive")
    return Request(line[1].decode(), line[2].decode(), headers, body, is_kept)
