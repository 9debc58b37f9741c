"""What a caller gives to a connection, and what it gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from .problems import HttpProblem


class Response(NamedTuple):
    """An answer as it came; the names of its headers are in lower case."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes | bytearray


class Reader(Protocol):
    """Makes of a response what the caller is given."""

    @property
    def known(self) -> Mapping[bytes, Any]:
        """What whole answers, head and body, are made into; other ones are read."""
        ...

    def read(self, response: Response) -> Any:
        """Return what is given to the caller. What it raises is given to the caller, too."""
        ...

    def learn(self, answer: bytes, read: Any) -> None:
        """Know an answer from now on, if that is worth it."""
        ...

    def explain(self, problem: HttpProblem) -> BaseException:
        """Return the error that the caller is given."""
        ...


Done = Callable[[Any, BaseException | None], None]
