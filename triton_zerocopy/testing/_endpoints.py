"""Where a server listens, and the arguments that say so."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import _ports
from ._errors import PortInUse


@dataclass(frozen=True)
class Endpoint:
    """One listening address: an IP address, or `unix:` and the path of a socket."""

    protocol: str  # "grpc" or "http"
    address: str
    port: int

    @property
    def url(self) -> str:
        """The address as clients take it."""
        if not self.is_unix:
            return f"{self.address}:{self.port}"
        # The server appends the port to the name of its gRPC socket, not to that of HTTP.
        return f"{self.address}:{self.port}" if self.protocol == "grpc" else self.address

    @property
    def is_unix(self) -> bool:
        """Whether this is a Unix socket."""
        return self.address.startswith("unix:")

    @property
    def arguments(self) -> list[str]:
        """The server's arguments for it."""
        return [f"--{self.protocol}-address={self.address}", f"--{self.protocol}-port={self.port}"]

    def check_free(self) -> None:
        """Raise PortInUse if another program listens there."""
        if not self.is_unix and not _ports.is_free(self.port):
            raise PortInUse(
                f"Port {self.port} on {_ports.LOOPBACK} is taken by another program. End that, or"
                f" leave out {self.protocol}_port to have a free one chosen.",
                port=self.port,
            )

    def remove_leftover(self) -> None:
        """Remove the Unix socket of a server that was killed, unless somebody listens there.

        Triton does not start over such a file.
        """
        path = Path(self.url.removeprefix("unix:"))
        if not self.is_unix or not path.is_socket():
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:
                pass  # it is gone, or somebody listens and is busy


@dataclass(frozen=True)
class Endpoints:
    """The two endpoints of a server."""

    grpc: Endpoint
    http: Endpoint

    @property
    def arguments(self) -> list[str]:
        """The server's arguments for both."""
        return [*self.grpc.arguments, *self.http.arguments]

    def check_free(self) -> None:
        """Raise PortInUse if another program listens on one of them."""
        self.grpc.check_free()
        self.http.check_free()

    def remove_leftovers(self) -> None:
        """Remove the Unix sockets that a killed server left."""
        self.grpc.remove_leftover()
        self.http.remove_leftover()


class EndpointChooser:
    """Chooses endpoints from what the caller asked for."""

    def __init__(
        self, args: Sequence[str], *, grpc_port: int | None, http_port: int | None
    ) -> None:
        """Take what the caller wants.

        Args:
            args: Server arguments, of which --grpc-address and --http-address are taken out.
            grpc_port: A given port, or None to have one chosen.
            http_port: The same for HTTP.

        Raises:
            ValueError: Both ports are the same.
        """
        if grpc_port is not None and grpc_port == http_port:
            raise ValueError(f"grpc_port and http_port are both {grpc_port}; they must differ.")
        self._grpc_port = grpc_port
        self._http_port = http_port
        self.remaining_args = list(args)
        self._grpc_address = self._take("--grpc-address")
        self._http_address = self._take("--http-address")

    @property
    def is_fixed(self) -> bool:
        """Whether the caller gave both ports, so that another choice is no way out."""
        return self._grpc_port is not None and self._http_port is not None

    def choose(self) -> Endpoints:
        """Return endpoints that are free now.

        Raises:
            PortInUse: A port that the caller gave is taken.
        """
        given = frozenset(port for port in (self._grpc_port, self._http_port) if port is not None)
        grpc = self._grpc_port if self._grpc_port is not None else _ports.choose(avoid=given)
        http = self._http_port
        if http is None:
            http = _ports.choose(avoid=given | {grpc})
        endpoints = Endpoints(
            grpc=Endpoint("grpc", self._grpc_address, grpc),
            http=Endpoint("http", self._http_address, http),
        )
        endpoints.check_free()
        return endpoints

    def _take(self, option: str) -> str:
        value = _ports.LOOPBACK
        kept: list[str] = []
        arguments = iter(self.remaining_args)
        for argument in arguments:
            if argument == option:
                value = next(arguments, value)
            elif argument.startswith(f"{option}="):
                value = argument.partition("=")[2]
            else:
                kept.append(argument)
        self.remaining_args = kept
        return value
