"""JSON as the server reads and writes it, with the errors of its parser."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .refusals import Refusal, internal, invalid
from .tensors import ITEM_SIZE, NUMPY, Output, pack, unpack

_NOT_IN_JSON = ("FP16", "BF16")


def compact(value: object) -> bytes:
    """Return JSON as Triton writes it: without spaces, in UTF-8."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogateescape")


def parse_json(body: bytes) -> Any:
    """Parse a body.

    Raises:
        Refusal: It is no JSON.
    """
    if not body:
        raise internal("failed to parse the request JSON buffer: The document is empty. at 0")
    try:
        return json.loads(body)
    except ValueError as error:
        raise internal(f"failed to parse the request JSON buffer: {error}") from error


def number(value: object, what: str = "") -> int:
    """Return a JSON value that must be an unsigned integer.

    Args:
        value: The value.
        what: What it is, as messages say; empty where they do not.

    Raises:
        Refusal: It is something else.
    """
    if type(value) is int and 0 <= value < 2**64:
        return value
    raise unparsed(what, "attempt to access JSON non-unsigned-integer as unsigned-integer")


def text(value: object, what: str = "") -> str:
    """Return a JSON value that must be a string; raises Refusal if it is something else."""
    if isinstance(value, str):
        return value
    raise unparsed(what, "attempt to access JSON non-string as string")


def member(value: object, name: str, what: str = "") -> Any:
    """Return a member of a JSON object; raises Refusal if there is none."""
    if isinstance(value, Mapping) and name in value:
        return value[name]
    raise unparsed(what, f"attempt to access non-existing object member '{name}'")


def from_json(name: str, datatype: str, data: Any, count: int) -> bytes:
    """Return the bytes of an input whose data is JSON.

    Args:
        name: The input.
        datatype: Its datatype.
        data: Its data, nested as deep as one likes.
        count: How many items its shape has.

    Raises:
        Refusal: The data does not fit.
    """
    if datatype in _NOT_IN_JSON:
        raise invalid(
            f"receiving {datatype} data via JSON is not supported. Please use the binary data"
            f" format for input {name}"
        )
    if datatype not in NUMPY:
        raise invalid(f"invalid datatype for input {name}")
    items = [_item(datatype, item) for item in _flat(data)]
    if len(items) != count:
        raise unparsed("data", "Shape does not match true shape of 'data' field")
    if datatype == "BYTES":
        return pack(items)
    return np.array(items, NUMPY[datatype]).tobytes()


def _flat(data: Any) -> Iterator[Any]:
    for item in data:
        if isinstance(item, list):
            yield from _flat(item)
        else:
            yield item


def _item(datatype: str, item: Any) -> Any:
    if datatype == "BYTES":
        return text(item, "data").encode("utf-8", "surrogateescape")
    if datatype == "BOOL" and type(item) is not bool:
        raise unparsed("data", "attempt to access JSON non-boolean as boolean")
    if datatype.startswith("UINT"):
        return number(item, "data")
    if datatype.startswith("INT") and type(item) is not int:
        raise unparsed("data", "attempt to access JSON non-signed-integer as signed-integer")
    if datatype.startswith("FP") and type(item) not in (int, float):
        raise unparsed("data", "attempt to access JSON non-number as double")
    return item


def to_json(output: Output) -> list[Any]:
    """Return the data of an output as JSON; raises Refusal if JSON cannot have it."""
    if output.datatype in _NOT_IN_JSON:
        raise invalid(
            f"sending {output.datatype} data via JSON is not supported. Please use the binary data"
            " format for output"
        )
    if output.datatype == "BYTES":
        items = unpack(output.data, output.name)
        return [item.decode("utf-8", "surrogateescape") for item in items]
    if output.datatype not in ITEM_SIZE or len(output.data) % ITEM_SIZE[output.datatype]:
        raise internal(f"output tensor shape does not match size of output for '{output.name}'")
    values: list[Any] = np.frombuffer(output.data, NUMPY[output.datatype]).tolist()
    return values


def unparsed(what: str, why: str) -> Refusal:
    """Return the refusal of a JSON value."""
    return internal(f"Unable to parse '{what}': {why}" if what else why)
