"""The bytes of HTTP requests: infer calls, made ahead as far as they stay the same, and others."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from .._errors import InputError
from .base import DEFAULT_OPTIONS, CallOptions, InferRequest, MemoryRef

_JSON_ONLY: Final = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_WITH_BINARY: Final = (
    b"Content-Type: application/octet-stream\r\n"
    b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """All of an infer request that stays the same from call to call.

    Attributes:
        head: request line and headers, without the lengths.
        pieces: the JSON after the options; between two of them goes the byte size of an
            inline input.
        has_outputs: False if all outputs are wanted, inline.
        plain: the whole request of a call without inline inputs and without options.
    """

    head: bytes
    pieces: Sequence[bytes]
    has_outputs: bool
    plain: bytes | None


class Requests:
    """Makes requests to one server.

    Args:
        host: what the Host header says.
        headers: sent with every request.
    """

    def __init__(self, host: str, headers: Mapping[str, str]) -> None:
        named = {"host": host, **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in named.items())

    def get(self, path: str) -> bytes:
        """Return a request that asks for something."""
        return f"GET {path} HTTP/1.1\r\n{self._headers}\r\n".encode("ascii")

    def post(self, path: str, document: Mapping[str, Any] | None = None) -> bytes:
        """Return a request that has JSON, or nothing."""
        body = b"" if document is None else _json(document)
        return self._head(path) + _JSON_ONLY % len(body) + body

    def prepare(self, request: InferRequest) -> Prepared:
        """Make all that stays the same of a request.

        Raises:
            InputError: the model's name cannot be a part of a path.
        """
        path = f"{model_path(request.model_name, request.model_version)}/infer"
        inputs = [
            {
                "name": each.name,
                "datatype": each.datatype,
                "shape": each.shape,
                "parameters": {"binary_data_size": 0}
                if each.memory is None
                else _placed(each.memory),
            }
            for each in request.inputs
        ]
        outputs = [
            {
                "name": each.name,
                "parameters": {"binary_data": True}
                if each.memory is None
                else _placed(each.memory),
            }
            for each in request.outputs
        ]
        head = self._head(path)
        pieces = _split(inputs, [each.memory is None for each in request.inputs])
        pieces[-1] += b',"outputs":%b}' % _json(outputs) if outputs else b"}"
        prepared = Prepared(head, pieces, bool(outputs), None)
        if len(pieces) > 1:
            return prepared
        plain = compose(prepared, (), DEFAULT_OPTIONS)
        return Prepared(head, pieces, bool(outputs), plain)

    def _head(self, path: str) -> bytes:
        return f"POST {path} HTTP/1.1\r\n{self._headers}".encode("ascii")


def compose(prepared: Prepared, payloads: Sequence[memoryview], options: CallOptions) -> bytes:
    """Add to a prepared request what changes from call to call.

    Raises:
        InputError: an option cannot be sent by HTTP.
    """
    if prepared.plain is not None and options is DEFAULT_OPTIONS:
        return prepared.plain
    parts = [_options(options, is_binary=not prepared.has_outputs), prepared.pieces[0]]
    for payload, piece in zip(payloads, prepared.pieces[1:], strict=True):
        parts += (b"%d" % len(payload), piece)
    size = sum(map(len, parts))
    if payloads:
        lengths = _WITH_BINARY % (size, size + sum(map(len, payloads)))
    else:
        lengths = _JSON_ONLY % size
    return b"".join((prepared.head, lengths, *parts, *payloads))


def model_path(name: str, version: str) -> str:
    """Return the path of a model.

    Raises:
        InputError: the names cannot be parts of a path.
    """
    path = f"/v2/models/{segment(name)}"
    return f"{path}/versions/{segment(version)}" if version else path


def segment(text: str) -> str:
    """Return a text as one part of a path; Triton decodes none of them.

    Raises:
        InputError: it cannot be one.
    """
    if not isinstance(text, str) or not text.isprintable() or text in ("", ".", ".."):
        raise InputError(f"a name in an http url is printable and not '.' or '..', got {text!r}")
    return quote(text, safe="")


def _split(inputs: Sequence[Mapping[str, Any]], is_inline: Sequence[bool]) -> list[bytes]:
    """Return the JSON of the inputs, cut where the sizes of inline ones go."""
    pieces = [b'"inputs":[']
    separator = b""
    for entry, has_size in zip(inputs, is_inline, strict=True):
        text = separator + _json(entry)
        separator = b","
        if has_size:
            pieces[-1] += text.removesuffix(b"0}}")
            pieces.append(b"}}")
        else:
            pieces[-1] += text
    pieces[-1] += b"]"
    return pieces


def _placed(memory: MemoryRef) -> dict[str, Any]:
    place: dict[str, Any] = {
        "shared_memory_region": memory.region,
        "shared_memory_byte_size": memory.byte_size,
    }
    return place | ({"shared_memory_offset": memory.offset} if memory.offset else {})


def _options(options: CallOptions, *, is_binary: bool) -> bytes:
    """Return the begin of the JSON: what changes, or is said of all outputs."""
    parameters: dict[str, Any] = dict(options.parameters)
    for name, value in parameters.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"parameter {name!r} is {value}, which HTTP cannot carry")
    if options.priority:
        parameters["priority"] = options.priority
    if options.queue_timeout is not None:
        parameters["timeout"] = options.queue_timeout
    if is_binary:
        parameters["binary_data_output"] = True
    document: dict[str, Any] = {}
    if options.request_id:
        if not options.request_id.isprintable():
            raise InputError(f"a request_id is printable over HTTP, got {options.request_id!r}")
        document["id"] = options.request_id
    if parameters:
        document["parameters"] = parameters
    return _json(document)[:-1] + b"," if document else b"{"


def _json(value: object) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{error.object[error.start]!r} is no character that can be sent"
        ) from None
