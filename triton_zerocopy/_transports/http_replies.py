"""What HTTP answers say: of infer calls, of models, and errors as gRPC names them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from .._http.exchange import Response
from .._http.problems import HttpProblem, NotConnected
from .._specs import ModelSpec, TensorSpec
from .base import InferReply, OutputReply, Parameter, ServerError, without_region_names

_REMEMBERED: Final = 256
_LONGEST_ERROR: Final = 1 << 20
"""Bytes of an error that may be Triton's; parsing more would keep the event loop busy."""
_LONGEST_TEXT: Final = 1 << 14

_TRITON_CODES: Final = {
    400: "INVALID_ARGUMENT",
    # A restricted API; gRPC says UNAVAILABLE.
    403: "UNAVAILABLE",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    # Not Triton's, but of something on the way that writes errors as it does.
    429: "RESOURCE_EXHAUSTED",
    502: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""Statuses of Triton (server, http_server.cc) by what its gRPC endpoint says instead."""

_FOREIGN_CODES: Final = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "UNIMPLEMENTED",
    405: "UNIMPLEMENTED",
    413: "INVALID_ARGUMENT",
    429: "UNAVAILABLE",
    431: "INVALID_ARGUMENT",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "UNAVAILABLE",
}
"""Statuses of proxies. What is not here may come of a request that Triton is running."""


class InferReader:
    """Reads the answers of infer calls, and knows those that come again and again."""

    def __init__(self) -> None:
        self.known: dict[bytes, InferReply] = {}

    def read(self, response: Response) -> InferReply:
        """Return the reply. Raises ServerError."""
        if response.status != 200:
            raise server_error(response)
        try:
            return _reply(response)
        except Exception as error:  # who knows who has answered
            raise ServerError("UNKNOWN", f"unreadable answer: {type(error).__name__}") from error

    def learn(self, answer: bytes, read: InferReply) -> None:
        """Know an answer without tensor bytes, which mostly is the same as the one before."""
        if not any(output.data for output in read.outputs):
            if len(self.known) >= _REMEMBERED:
                self.known.clear()
            self.known[answer] = read

    def explain(self, problem: HttpProblem) -> ServerError:
        return explain(problem)


class PlainReader:
    """Takes answers as they come."""

    known: Mapping[bytes, Any] = {}

    def read(self, response: Response) -> Response:
        return response

    def learn(self, answer: bytes, read: Response) -> None:
        pass

    def explain(self, problem: HttpProblem) -> ServerError:
        return explain(problem)


def explain(problem: HttpProblem) -> ServerError:
    """Return the error of a call without an answer."""
    if isinstance(problem, NotConnected):
        return ServerError("UNAVAILABLE", f"no connection was made: {problem}")
    return ServerError("UNAVAILABLE", str(problem))


def server_error(response: Response) -> ServerError:
    """Return the error that an answer is."""
    message = _error_text(response.body)
    if message is not None:
        code = _TRITON_CODES.get(response.status, "UNKNOWN")
        if code == "INVALID_ARGUMENT" and "already in manager" in message:
            code = "ALREADY_EXISTS"
        return ServerError(code, without_region_names(message))
    # Of what else answers nothing is repeated: it may show the headers of the request.
    try:
        phrase = HTTPStatus(response.status).phrase
    except ValueError:
        phrase = "unknown status"
    return ServerError(
        _FOREIGN_CODES.get(response.status, "UNKNOWN"),
        f"the answer is not Triton's: HTTP {response.status} ({phrase})",
    )


def read_json(response: Response) -> Any:
    """Return the JSON of an answer. Raises ServerError."""
    if response.status != 200:
        raise server_error(response)
    try:
        return json.loads(response.body)
    except (ValueError, RecursionError) as error:
        raise ServerError("UNKNOWN", f"unreadable answer: {type(error).__name__}") from error


def model_spec(name: str, version: str, metadata: Any, config: Any) -> ModelSpec:
    """Return what a model takes and gives, from its metadata and its config."""
    optional = {entry["name"] for entry in config.get("input", ()) if entry.get("optional")}
    return ModelSpec.make(
        name,
        version,
        [_tensor_spec(entry, optional) for entry in metadata["inputs"]],
        [_tensor_spec(entry, set()) for entry in metadata["outputs"]],
        max_batch_size=_integer(config.get("max_batch_size", 0)),
        is_decoupled=config.get("model_transaction_policy", {}).get("decoupled") is True,
        is_ensemble=config.get("platform") == "ensemble" or "ensemble_scheduling" in config,
        is_sequence="sequence_batching" in config,
        platform=text(metadata.get("platform", "")),
    )


def _error_text(body: bytes | bytearray) -> str | None:
    """Return the text of an error as Triton writes it; None for what something else wrote."""
    if len(body) > _LONGEST_ERROR:
        return None
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    message = document.get("error") if isinstance(document, dict) else None
    return message[:_LONGEST_TEXT] if isinstance(message, str) else None


def _reply(response: Response) -> InferReply:
    """Parse a reply. Data as JSON was not asked for: such an output has no bytes here."""
    body = response.body
    length = int(response.headers.get(b"inference-header-content-length", len(body)))
    if not 0 <= length <= len(body):
        raise ValueError
    document = json.loads(body[:length])
    rest = memoryview(body).toreadonly()[length:]
    position = 0
    outputs = []
    for entry in document["outputs"]:
        size = 0
        if "parameters" in entry:
            size = _integer(entry["parameters"].get("binary_data_size", 0))
        if not 0 <= size <= len(rest) - position:
            raise ValueError
        shape = tuple(map(_integer, entry["shape"]))
        data = rest[position : position + size] if size else b""
        outputs.append(OutputReply(text(entry["name"]), text(entry["datatype"]), shape, data))
        position += size
    if position != len(rest):
        raise ValueError
    return InferReply(
        text(document["model_name"]),
        text(document["model_version"]),
        text(document.get("id", "")),
        _parameters(document.get("parameters", {})),
        outputs,
    )


def _tensor_spec(entry: Any, optional: set[str]) -> TensorSpec:
    name = text(entry["name"])
    shape = tuple(map(_integer, entry["shape"]))
    return TensorSpec(name, text(entry["datatype"]), shape, name in optional)


def _parameters(parameters: Any) -> dict[str, Parameter]:
    return {
        name: value
        for name, value in parameters.items()
        if isinstance(value, (str, bool, int, float))
    }


def text(value: Any) -> str:
    """Return what is a str. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value
