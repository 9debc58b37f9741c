"""Infer requests and answers as HTTP has them (server, src/http_server.cc)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from .checks import Checks
from .http_wire import Reply
from .json_values import compact, from_json, member, number, parse_json, text, to_json, unparsed
from .mappings import Window
from .models import Model
from .refusals import Refusal, invalid
from .service import InferCall
from .tensors import Answer, Inline, Input, Requested

HEADER_LENGTH = "inference-header-content-length"

_PLACED = "shared_memory_region"


def parse(
    body: bytes, header_length: str | None, model: Model, call: InferCall, *, once: bool
) -> None:
    """Fill in a call from a body, and refer to the regions it names.

    Args:
        body: JSON, and after it the binary data of the tensors.
        header_length: How long the JSON is, as the header says; None for all.
        model: The model it is for.
        call: What is filled in.
        once: Whether an output may be requested once only.

    Raises:
        Refusal: It is no valid request.
    """
    length = _header_length(header_length, len(body))
    document = parse_json(body[:length])
    binary = _Binary(body, length, model.config.name)
    if isinstance(document, Mapping) and "id" in document:
        call.request_id = text(document["id"], "id")
    by_default = _parse_parameters(document, call)
    checks = Checks(model.config, call.request_id)
    entries = member(document, "inputs", "inputs")
    if not isinstance(entries, list):
        raise unparsed("inputs", "attempt to access JSON non-array as array")
    checks.check_names_differ("input", _names(entries))
    for entry in entries:
        _parse_input(entry, binary, call)
    binary.check_used()
    outputs = document.get("outputs", ())
    if once:
        checks.check_names_differ("output", _names(outputs))
    for entry in outputs:
        _parse_output(entry, call)
    if not outputs and by_default:
        call.outputs += [Requested(name, binary=True) for name in model.config.outputs]


def form(answer: Answer) -> Reply:
    """Return an answer as it travels.

    Raises:
        Refusal: There is something in it that JSON cannot have.
    """
    head: dict[str, Any] = {"id": answer.request_id} if answer.request_id else {}
    head |= {"model_name": answer.model_name, "model_version": answer.model_version}
    head["outputs"] = entries = []
    binary: list[bytes] = []
    for output in answer.outputs:
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        entries.append(entry)
        if output.target is not None:
            continue
        if output.binary:
            entry["parameters"] = {"binary_data_size": len(output.data)}
            binary.append(output.data)
        else:
            entry["data"] = to_json(output)
    document = compact(head)
    if not any(binary):
        return Reply(body=document, content_type="application/json")
    return Reply(
        body=document + b"".join(binary),
        content_type="application/octet-stream",
        headers={"Inference-Header-Content-Length": str(len(document))},
    )


class _Binary:
    """The binary data after the JSON, taken piece by piece."""

    def __init__(self, body: bytes, position: int, model: str) -> None:
        self._body = body
        self._position = position
        self._model = model

    def take(self, name: str, byte_size: int) -> bytes:
        piece = self._body[self._position : self._position + byte_size]
        self._position += len(piece)
        if len(piece) < byte_size:
            raise invalid(
                f"unexpected size for input '{name}', expecting {byte_size - len(piece)}"
                f" additional bytes for model '{self._model}'"
            )
        return piece

    def check_used(self) -> None:
        if self._position < len(self._body):
            raise invalid(f"unexpected additional input data for model '{self._model}'")


def _header_length(header: str | None, length: int) -> int:
    if header is None:
        return length
    value = int(header) if header.isdecimal() else -1
    if not 0 <= value <= length:
        raise invalid(f"inference header size should be in range (0, {length}), got: {header}")
    if value == 0:
        raise Refusal("UNIMPLEMENTED", "FakeTriton does not play raw binary requests")
    return value


def _names(entries: Any) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
            yield entry["name"]


def _parse_parameters(document: Any, call: InferCall) -> bool:
    """Return whether outputs that are not asked for one by one come as binary data."""
    binary = False
    for name, value in document.get("parameters", {}).items():
        if name == "timeout":
            call.timeout = number(value, "timeout")
        elif name == "priority":
            number(value, "priority")
        elif name == "binary_data_output":
            binary = value is True
        elif name.startswith("triton_"):
            raise invalid(
                "parameter keys starting with 'triton_' are reserved for Triton usage and should"
                " not be specified."
            )
        elif not name.startswith("sequence_"):
            call.parameters[name] = value
    return binary


def _parse_input(entry: Any, binary: _Binary, call: InferCall) -> None:
    parameters = entry.get("parameters", {})
    _check_one_source(entry, parameters)
    name = text(member(entry, "name", "name"), "name")
    datatype = text(member(entry, "datatype", "datatype"), "datatype")
    shape = tuple(number(size, "shape") for size in member(entry, "shape", "shape"))
    source: Inline | Window
    if "binary_data_size" in parameters:
        size = number(parameters["binary_data_size"], "binary_data_size")
        source = Inline(binary.take(name, size))
    elif _PLACED in parameters:
        source = _window(parameters, call)
    else:
        source = Inline(from_json(name, datatype, entry["data"], math.prod(shape)))
    call.inputs.append(Input(name, datatype, shape, source))


def _check_one_source(entry: Any, parameters: Any) -> None:
    places = (("data", entry), ("binary_data_size", parameters), (_PLACED, parameters))
    present = [f" '{name}'" for name, where in places if name in where]
    if len(present) != 1:
        raise invalid(
            "Input must set only one of the following fields: 'data', 'binary_data_size' in"
            " 'parameters', 'shared_memory_region' in 'parameters'. But"
            + (f" set{''.join(present)}" if present else " no field is set")
        )


def _parse_output(entry: Any, call: InferCall) -> None:
    parameters = entry.get("parameters", {})
    binary = parameters.get("binary_data") is True
    for name in ("classification", "binary_data"):
        if _PLACED in parameters and name in parameters and (name != "binary_data" or binary):
            raise invalid(f"Output can't set both 'shared_memory_region' and '{name}'")
    if "classification" in parameters:
        raise Refusal("UNIMPLEMENTED", "FakeTriton does not play classification")
    output = text(member(entry, "name", "name"), "name")
    target = _window(parameters, call) if _PLACED in parameters else None
    call.outputs.append(Requested(output, target, binary))


def _window(parameters: Any, call: InferCall) -> Window:
    region = text(parameters[_PLACED], _PLACED)
    offset, byte_size = (
        number(parameters.get(name, 0), name)
        for name in ("shared_memory_offset", "shared_memory_byte_size")
    )
    return call.references.take(region, offset, byte_size)
