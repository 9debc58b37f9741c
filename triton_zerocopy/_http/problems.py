"""What can go wrong on the way to a server, by what it says about the request."""

from __future__ import annotations


class HttpProblem(Exception):
    """There is no answer that can be used."""


class NotConnected(HttpProblem):
    """No connection was made, so nothing of the request was sent."""


class ConnectionBroke(HttpProblem):
    """The connection ended before the answer did. The server may have got the request."""


class Malformed(HttpProblem):
    """What came is no HTTP answer, or a larger one than is taken."""
