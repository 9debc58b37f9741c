"""Infer requests and answers as gRPC has them (server, src/grpc/infer_handler.cc)."""

from __future__ import annotations

import struct
from typing import Any

from tritonclient.grpc import service_pb2

from .checks import Checks
from .mappings import Window
from .models import Model
from .refusals import Refusal, invalid
from .service import InferCall
from .tensors import ITEM_SIZE, Answer, Inline, Input, Requested, pack

_pb: Any = service_pb2  # generated at import, so type checkers see nothing in it

_OPTIONS = ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout")
_SMALL = {"int_contents": ("INT8", "INT16"), "uint_contents": ("UINT8", "UINT16")}
_CONTENTS = {
    # field: (datatype, format of an item)
    "bool_contents": ("BOOL", "?"),
    "int_contents": ("INT32", "i"),
    "int64_contents": ("INT64", "q"),
    "uint_contents": ("UINT32", "I"),
    "uint64_contents": ("UINT64", "Q"),
    "fp32_contents": ("FP32", "f"),
    "fp64_contents": ("FP64", "d"),
    "bytes_contents": ("BYTES", ""),
}


def parse(request: Any, model: Model, call: InferCall, *, once: bool) -> None:
    """Fill in a call from a ModelInferRequest, and refer to the regions it names.

    Args:
        request: The message.
        model: The model it is for.
        call: What is filled in.
        once: Whether an output may be requested once only.

    Raises:
        Refusal: It is no valid request.
    """
    call.request_id = request.id
    _parse_parameters(request.parameters, call)
    checks = Checks(model.config, request.id)
    checks.check_names_differ("input", (tensor.name for tensor in request.inputs))
    if once:
        checks.check_names_differ("output", (tensor.name for tensor in request.outputs))
    _parse_inputs(request, call)
    for tensor in request.outputs:
        window = _window(tensor, call)
        if "classification" in tensor.parameters:
            raise _classification(tensor.parameters["classification"], window)
        call.outputs.append(Requested(tensor.name, window))


def form(answer: Answer) -> Any:
    """Return an answer as a ModelInferResponse."""
    message = _pb.ModelInferResponse(
        model_name=answer.model_name, model_version=answer.model_version, id=answer.request_id
    )
    for output in answer.outputs:
        message.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        # One entry for each output, an empty one for those in shared memory.
        message.raw_output_contents.append(b"" if output.target is not None else output.data)
    return message


def _parse_parameters(parameters: Any, call: InferCall) -> None:
    for name, value in parameters.items():
        kind = value.WhichOneof("parameter_choice")
        if name == "priority":
            if kind not in ("int64_param", "uint64_param"):
                raise invalid(
                    "invalid value type for 'priority' parameter, expected int64_param or"
                    " uint64_param."
                )
            if getattr(value, kind) < 0:
                raise invalid("invalid value for 'priority', expected value >= 0.")
        elif name == "timeout":
            if kind != "int64_param":
                raise invalid("invalid value type for 'timeout' parameter, expected int64_param.")
            call.timeout = value.int64_param
        elif name.startswith("triton_") and name != "triton_enable_empty_final_response":
            raise invalid(
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the"
                " following keys starting with 'triton_' are allowed:"
                " triton_enable_empty_final_response"
            )
        elif name not in _OPTIONS:
            if kind not in ("bool_param", "int64_param", "string_param", "double_param"):
                raise invalid(
                    f"invalid value type for '{name}' parameter, expected int64_param, bool_param,"
                    " or string_param."
                )
            call.parameters[name] = getattr(value, kind)


def _parse_inputs(request: Any, call: InferCall) -> None:
    raw = iter(request.raw_input_contents)
    for tensor in request.inputs:
        window = _window(tensor, call)
        where = f"'{tensor.name}' for model '{request.model_name}'"
        if window is not None and tensor.HasField("contents"):
            raise invalid(
                f"unexpected 'content' provided when using shared memory for input tensor {where}"
            )
        if window is not None:
            source: Inline | Window = window
        elif tensor.HasField("contents"):
            if request.raw_input_contents:
                raise invalid(
                    "contents field must not be specified when using raw_input_contents for"
                    f" {where}"
                )
            source = Inline(_contents(tensor, where))
        else:
            # Only inputs without shared memory take one of these.
            data = next(raw, None)
            if data is None:
                raise invalid(f"unable to find data for input tensor {where} in request.")
            source = Inline(data)
        call.inputs.append(Input(tensor.name, tensor.datatype, tuple(tensor.shape), source))


def _contents(tensor: Any, where: str) -> bytes:
    for field, (datatype, item) in _CONTENTS.items():
        values = getattr(tensor.contents, field)
        if not values:
            continue
        if tensor.datatype in _SMALL.get(field, ()):
            size = ITEM_SIZE[tensor.datatype]
            return b"".join((value % 2**32).to_bytes(4, "little")[:size] for value in values)
        if tensor.datatype != datatype:
            raise invalid(
                f"unexpected explicit tensor data for input tensor {where} of type '{datatype}',"
                f" expected datatype '{tensor.datatype}'"
            )
        return struct.pack(f"<{len(values)}{item}", *values) if item else pack(values)
    return b""


def _window(tensor: Any, call: InferCall) -> Window | None:
    region = _parameter(tensor, "shared_memory_region", "string_param")
    values: dict[str, int] = {}
    for name in ("shared_memory_offset", "shared_memory_byte_size"):
        if name not in tensor.parameters:
            continue
        if region is None:
            raise invalid(
                f"'{name}' can not be specified without 'shared_memory_region' parameter for"
                f" tensor '{tensor.name}'"
            )
        values[name] = _parameter(tensor, name, "int64_param")
    if region is None:
        return None
    if "shared_memory_byte_size" not in values:
        raise invalid(
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region'"
            f" parameter for tensor '{tensor.name}'"
        )
    offset = values.get("shared_memory_offset", 0)
    return call.references.take(region, offset, values["shared_memory_byte_size"])


def _parameter(tensor: Any, name: str, kind: str) -> Any:
    if name not in tensor.parameters:
        return None
    value = tensor.parameters[name]
    if value.WhichOneof("parameter_choice") != kind:
        raise invalid(
            f"invalid value type for '{name}' parameter for tensor '{tensor.name}', expected"
            f" {kind}."
        )
    return getattr(value, kind)


def _classification(parameter: Any, window: Window | None) -> Refusal:
    if parameter.WhichOneof("parameter_choice") != "int64_param":
        return invalid("invalid value type for 'classification' parameter, expected int64_param")
    if window is not None:
        return invalid("output can't set both 'shared_memory_region' and 'classification'")
    return Refusal("UNIMPLEMENTED", "FakeTriton does not play classification")
