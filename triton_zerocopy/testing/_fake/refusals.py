"""Answers that are errors, the same for both protocols."""

from __future__ import annotations

from http import HTTPStatus

HTTP_STATUS = {
    # As Triton has it (server, src/http_server.cc, HttpCodeFromError); all others are 400.
    "INTERNAL": HTTPStatus.INTERNAL_SERVER_ERROR,
    "NOT_FOUND": HTTPStatus.NOT_FOUND,
    "UNAVAILABLE": HTTPStatus.SERVICE_UNAVAILABLE,
    "UNIMPLEMENTED": HTTPStatus.NOT_IMPLEMENTED,
    # Triton itself never answers these; a test may have them answered.
    "DEADLINE_EXCEEDED": HTTPStatus.GATEWAY_TIMEOUT,
    "PERMISSION_DENIED": HTTPStatus.FORBIDDEN,
    "RESOURCE_EXHAUSTED": HTTPStatus.TOO_MANY_REQUESTS,
    "UNAUTHENTICATED": HTTPStatus.UNAUTHORIZED,
}


class Refusal(Exception):
    """The server answers with an error.

    Attributes:
        code: Name of the gRPC status code.
        text: The message that clients see.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text

    @property
    def http_status(self) -> HTTPStatus:
        """The status over HTTP."""
        return HTTP_STATUS.get(self.code, HTTPStatus.BAD_REQUEST)


def invalid(text: str) -> Refusal:
    """Return a refusal of something that the client did wrong."""
    return Refusal("INVALID_ARGUMENT", text)


def internal(text: str) -> Refusal:
    """Return a refusal of a kind that Triton calls internal."""
    return Refusal("INTERNAL", text)
