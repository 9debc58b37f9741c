"""How a call ended: is the server done with the memory, and has the model run?

The server keeps executing a request whose client is gone, and writes its outputs late. So
a slot is reusable after an answer that the server itself made, and in doubt otherwise.
"""

from __future__ import annotations

import asyncio
import enum
import re
from typing import Final

from ._errors import InferenceError, ServerUnavailable
from ._transports.base import InferReply, ServerError
from ._waiter import Waiter


class Ending(enum.Enum):
    """What an error says about the server and the memory of the call."""

    ANSWERED = "the server answered and does not touch the memory any more"
    NOT_RUN = "the request never ran"
    REGION_LOST = "the server does not know the region, the request never ran"
    AMBIGUOUS = "the server may still run the request and write into the memory"


_DOUBTFUL: Final = {
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "UNKNOWN",
    "UNAVAILABLE",
    "RESOURCE_EXHAUSTED",
}
"""Status codes that the link as well as the server may have made."""

_UNREACHED: Final = (
    # Triton from 2.58 on, when it stops.
    "GRPC server is shutting down",
    # There was no connection to send it on, with gRPC and with HTTP.
    "failed to connect to all addresses",
    "DNS resolution failed",
    "no connection was made",
)
_NOT_RUN: Final = (
    # Triton's scheduler took it out of its queue (core, scheduler_utils.cc).
    "Request timeout expired",
    "Exceeds maximum queue size",
    # Triton's restricted protocols, refused before parsing.
    "This protocol is restricted",
    "This API is restricted",
    *_UNREACHED,
)
_LINK_BROKE: Final = ("RST_STREAM", "GOAWAY", "Stream removed", "Socket closed")
_REGION_LOST: Final = "Unable to find shared memory region"
_OUTGROWN: Final = re.compile(
    r"shared memory size specified with the request for output '(?P<name>.*)' "
    r"\(\d+ bytes\) should be at least (?P<needed>\d+) bytes"
)


def ending_of(error: BaseException | None) -> Ending:
    """Tell what an error of a call says about its memory."""
    if not isinstance(error, ServerError):
        return Ending.AMBIGUOUS
    # A model's own error may have any text, but not this code.
    if error.code == "UNAVAILABLE" and any(text in error.message for text in _NOT_RUN):
        return Ending.NOT_RUN
    if error.code in _DOUBTFUL or any(text in error.message for text in _LINK_BROKE):
        return Ending.AMBIGUOUS
    if _REGION_LOST in error.message:
        return Ending.REGION_LOST
    return Ending.ANSWERED


def is_unreached(error: ServerError) -> bool:
    """Tell whether there was no server to send to: it may be there later."""
    return error.code == "UNAVAILABLE" and any(text in error.message for text in _UNREACHED)


def outgrown_output(error: ServerError) -> tuple[str, int] | None:
    """Return (output, bytes needed) if an output did not fit; the model has run then."""
    found = _OUTGROWN.search(error.message)
    return (found["name"], int(found["needed"])) if found else None


def public_error(
    error: ServerError, *, model: str = "", request_id: str = ""
) -> InferenceError | ServerUnavailable:
    """Return the error that a caller sees, with a hint where there is a remedy."""
    if error.code in ("CANCELLED", "DEADLINE_EXCEEDED"):
        where = f"model {model!r}: " if model else ""
        return ServerUnavailable(f"{where}no answer from the server, {error.message}")
    if error.code == "UNAVAILABLE" and not any(text in error.message for text in _NOT_RUN[:2]):
        hint = (
            "; pass the header that the server wants"
            if "restricted" in error.message
            else "; check that the server runs and that the url is its gRPC port, or http:// "
            "and its HTTP port"
        )
        return ServerUnavailable(f"{error.message}{hint}")
    return InferenceError(
        error.message, status=f"StatusCode.{error.code}", model=model, request_id=request_id
    )


def hand_over(
    waiter: Waiter[InferReply],
    reply: InferReply | None,
    error: BaseException | None,
    *,
    at_once: bool,
) -> None:
    """Give a waiting caller the reply or the error.

    With ``at_once`` a caller with a reply goes on before this returns.
    """
    if reply is None:
        waiter.set_exception(_seen_by_caller(error))
    else:
        waiter.set_result(reply, at_once=at_once)


def _seen_by_caller(error: BaseException | None) -> BaseException:
    """Return the error of a call as its caller sees it.

    A cancelled call is not a cancelled caller, and gRPC's own errors stay inside.
    """
    if isinstance(error, ServerError):
        return error
    if error is None or isinstance(error, asyncio.CancelledError):
        return ServerError(
            "CANCELLED", "the call was given up when its client or its event loop was closed"
        )
    return ServerError("UNKNOWN", f"the call failed: {error!r}")
