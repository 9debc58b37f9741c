"""`Transport`: the seam between a request and how it travels, and the values that cross it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from .._datatypes import Shape
from .._specs import ModelSpec

Parameter = str | bool | int | float

HANDLE_BYTES: Final = 64
"""Bytes of a CUDA IPC handle."""

_REGION_NAME: Final = re.compile(r"tzc-[0-9a-f]{16}-[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class MemoryRef:
    """Bytes in a registered region."""

    region: str
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class InputRef:
    """An input of a request; without ``memory`` its bytes come inline."""

    name: str
    datatype: str
    shape: Shape
    memory: MemoryRef | None = None


@dataclass(frozen=True, slots=True)
class OutputRef:
    """A requested output; without ``memory`` its bytes come back inline."""

    name: str
    memory: MemoryRef | None = None


@dataclass(frozen=True, slots=True)
class InferRequest:
    """All of a request that stays the same from call to call."""

    model_name: str
    model_version: str
    inputs: Sequence[InputRef]
    outputs: Sequence[OutputRef]


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What of a request changes from call to call, besides inline bytes.

    Attributes:
        request_id: the caller's id, sent back by the server.
        priority: Triton's request priority, 0 for the model's default.
        queue_timeout: microseconds the request may wait in the server's queue, or None.
        parameters: the caller's own request parameters.
    """

    request_id: str = ""
    priority: int = 0
    queue_timeout: int | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict[str, Parameter])


DEFAULT_OPTIONS = CallOptions()


class OutputReply(NamedTuple):
    """An output as the server describes it; ``data`` is empty for one in a region."""

    name: str
    datatype: str
    shape: Shape
    data: bytes | memoryview


class InferReply(NamedTuple):
    """A server's answer to one request."""

    model_name: str
    model_version: str
    request_id: str
    parameters: Mapping[str, Parameter]
    outputs: Sequence[OutputReply]


class ServerError(Exception):
    """The server, or the way to it, answered with a status.

    Attributes:
        code: name of the gRPC status code, for example ``"NOT_FOUND"``.
        message: the text that came with it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself."""

    name: str
    version: str
    extensions: Sequence[str]

    @property
    def release(self) -> tuple[int, ...]:
        """The version as numbers, ``(2, 51, 0)``; a newest-possible one if it is unreadable."""
        parts = self.version.split(".")
        try:
            return tuple(int(part) for part in parts[:2])
        except ValueError:
            return (9999,)


def without_region_names(text: str) -> str:
    """Hide names of regions: whoever knows one may use it, so none reaches an error or a log."""
    return _REGION_NAME.sub("(a region)", text)


def some(name: str) -> str:
    """Return a region's name, which is not empty."""
    if not name:
        raise ValueError("an empty name would unregister every client's regions")
    return name


Done = Callable[[InferReply | None, BaseException | None], None]


class Transport(Protocol):
    """One server, as an infer path and a control plane.

    A request is prepared once, composed with what changes for each call, and sent. Errors
    that the server or the way to it reports are ServerError; ``infer`` gives them to
    ``done``.

    Attributes:
        gathers: True if messages given by several callers, one after another, are sent together
            a moment later.
    """

    gathers: bool

    def prepare(self, request: InferRequest) -> object:
        """Build all that stays the same of a request."""
        ...

    def compose(
        self, prepared: object, payloads: Sequence[memoryview], options: CallOptions
    ) -> object:
        """Make the message of one call. Touches no loop: large ones are made in a thread.

        Args:
            prepared: what ``prepare`` returned.
            payloads: the bytes of the inline inputs, in the order of the request.
            options: what changes from call to call.
        """
        ...

    def infer(self, message: object, done: Done) -> None:
        """Send a message; ``done`` is called once, later, from the event loop.

        The call has no deadline and nobody can cancel it. If the loop itself cancels what
        carries it, ``done`` gets an asyncio.CancelledError.
        """
        ...

    async def server_info(self, *, timeout: float | None) -> ServerInfo: ...
    async def is_ready(self, *, timeout: float | None) -> bool: ...
    async def model_spec(self, name: str, version: str, *, timeout: float | None) -> ModelSpec: ...
    async def register_system(
        self, name: str, key: str, byte_size: int, *, timeout: float | None
    ) -> None: ...
    async def unregister_system(self, name: str, *, timeout: float | None) -> None: ...
    async def has_system(self, name: str, *, timeout: float | None) -> bool: ...
    async def list_system(self, *, timeout: float | None) -> Sequence[str]: ...
    async def register_cuda(
        self, name: str, raw_handle: bytes, device_id: int, byte_size: int, *, timeout: float | None
    ) -> None: ...
    async def unregister_cuda(self, name: str, *, timeout: float | None) -> None: ...
    async def has_cuda(self, name: str, *, timeout: float | None) -> bool: ...
    async def list_cuda(self, *, timeout: float | None) -> Sequence[str]: ...
    async def aclose(self) -> None: ...
