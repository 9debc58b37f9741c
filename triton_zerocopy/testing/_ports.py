"""Loopback ports: choosing free ones, and telling whether one is taken."""

from __future__ import annotations

import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
_LOWEST = 10_000
_TRIES = 200


def is_free(port: int) -> bool:
    """Tell whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a connection in TIME_WAIT does not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def choose(*, avoid: frozenset[int] = frozenset()) -> int:
    """Return a loopback port that is free at this moment.

    The port lies below the range from which the kernel serves outgoing connections. A port from
    that range can be lost while a server restarts: a client that keeps reconnecting to it is
    sooner or later given that very port as its own, and connects to itself.

    Args:
        avoid: Ports not to return.
    """
    for _ in range(_TRIES):
        port = random.randrange(_LOWEST, max(_ephemeral_start(), _LOWEST + 1))  # noqa: S311
        if port not in avoid and is_free(port):
            return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        chosen: int = probe.getsockname()[1]
    return chosen


def _ephemeral_start() -> int:
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii")
        return int(text.split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768
