"""Asking a server over HTTP whether it is ready, without any client library."""

from __future__ import annotations

import http.client
import json
import socket
from dataclasses import dataclass

_TIMEOUT = 1.0  # seconds


@dataclass(frozen=True)
class Identity:
    """What a ready server says of itself."""

    name: str
    version: str


def ask(address: str, port: int) -> Identity | None:
    """Return the server's identity if it is ready, else None.

    Args:
        address: An IP address or host name, or `unix:` and the path of a socket.
        port: The port; of no meaning for a Unix socket.
    """
    connection = _connection(address, port)
    try:
        if _get(connection, "/v2/health/ready") is None:
            return None
        body = _get(connection, "/v2")
        facts = json.loads(body) if body else {}
        return Identity(name=str(facts.get("name", "")), version=str(facts.get("version", "")))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _get(connection: http.client.HTTPConnection, path: str) -> bytes | None:
    connection.request("GET", path)
    with connection.getresponse() as response:
        body = response.read()
        return body if response.status == http.client.OK else None


def _connection(address: str, port: int) -> http.client.HTTPConnection:
    if address.startswith("unix:"):
        return _UnixConnection(address.removeprefix("unix:"))
    return http.client.HTTPConnection(address, port, timeout=_TIMEOUT)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(self._path)
