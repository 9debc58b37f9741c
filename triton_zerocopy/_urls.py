"""Where a server is, and how the way to it is encrypted."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from ._errors import InputError


@dataclass(frozen=True, slots=True)
class SslOptions:
    """Certificates of a TLS connection, as PEM bytes or paths to PEM files.

    Attributes:
        root_certificates: authorities to trust; None for the default ones.
        private_key: this client's key, where the server asks for one.
        certificate_chain: this client's certificates, where the server asks for them.
    """

    root_certificates: bytes | str | os.PathLike[str] | None = None
    private_key: bytes | str | os.PathLike[str] | None = None
    certificate_chain: bytes | str | os.PathLike[str] | None = None

    @staticmethod
    def read(source: bytes | str | os.PathLike[str] | None) -> bytes | None:
        """Return the bytes of one of the attributes."""
        if source is None or isinstance(source, bytes):
            return source
        with open(source, "rb") as file:
            return file.read()

    def __repr__(self) -> str:
        return "SslOptions(...)"  # keys never reach a log


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed url.

    Attributes:
        address: ``"host:port"`` or ``"unix:/path"``, as gRPC takes it.
        is_secure: True for TLS.
        host: name or address of the host; empty for a Unix socket.
        port: TCP port; 0 for a Unix socket.
        is_http: True for Triton's HTTP endpoint, False for its gRPC endpoint.
    """

    address: str
    is_secure: bool
    host: str = ""
    port: int = 0
    is_http: bool = False

    @property
    def path(self) -> str:
        """Path of a Unix socket, else empty."""
        return "" if self.host else self.address.removeprefix("unix:")


_SCHEMES: Final = ("grpc", "grpcs", "http", "https")
_UNIX: Final = {"unix:": False, "http+unix:": True}


def parse_url(url: str) -> Target:
    """Parse ``host:port``, ``grpc(s)://``, ``http(s)://``, ``unix:`` or ``http+unix:``.

    Raises:
        InputError: it is none of these, or has no valid port.
    """
    if not isinstance(url, str) or not url or any(c.isspace() or not c.isprintable() for c in url):
        raise InputError(
            f"a url looks like 'localhost:8001' or 'unix:/run/triton.sock', got {url!r}"
        )
    for prefix, is_http in _UNIX.items():
        if url.startswith(prefix):
            path = url.removeprefix(prefix).removeprefix("//")
            if not path:
                raise InputError(f"a {prefix} url needs the path of a socket, got {url!r}")
            return Target(f"unix:{path}", is_secure=False, is_http=is_http)
    parts = urlsplit(url if "://" in url else f"grpc://{url}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"{url!r} has no valid port: {error}") from None
    if parts.scheme not in _SCHEMES:
        raise InputError(
            f"{url!r}: the scheme is one of {', '.join(_SCHEMES)}, unix, http+unix, not "
            f"{parts.scheme!r}"
        )
    if parts.username is not None or parts.password is not None:
        raise InputError("a url carries no user or password; pass headers instead")
    if not host or not port or parts.path not in ("", "/") or parts.query:
        raise InputError(f"a url is a host and a port, as in 'localhost:8001', got {url!r}")
    if not host.isascii():
        raise InputError(f"a host is ASCII, as in 'xn--...' for other characters, got {host!r}")
    literal = f"[{host}]" if ":" in host else host
    is_http, is_secure = parts.scheme.startswith("http"), parts.scheme.endswith("s")
    return Target(f"{literal}:{port}", is_secure, host, port, is_http)


def server_key(target: Target) -> str:
    """Return what two clients of one server agree on, however their urls spell it.

    Loopback addresses mean another host in each network namespace, so that is a part of it.
    """
    if not target.host:
        return f"unix:{os.path.abspath(target.path)}"
    if not _is_loopback(target.host):
        return f"{target.host}:{target.port}"
    try:
        namespace = os.readlink("/proc/self/ns/net")
    except OSError:
        namespace = "net"
    return f"localhost:{target.port} in {namespace}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def count_servers(target: Target) -> int:
    """Return how many servers an address may lead to. Blocking: asks the resolver.

    All loopback addresses are one host. A name that cannot be resolved counts as one, so
    that connecting tells what is wrong.
    """
    if not target.host:
        return 1
    try:
        found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except OSError:
        return 1
    addresses = {str(entry[4][0]).split("%")[0] for entry in found}
    families = [
        sum(ipaddress.ip_address(address).version == version for address in addresses)
        for version in (4, 6)
    ]
    if all(ipaddress.ip_address(address).is_loopback for address in addresses):
        return 1
    # A host often has one address of each kind; several of one kind are several servers.
    return max(families)
