"""The protobuf messages of an infer call, and what a model's metadata says.

A message is put together from serialised parts. Protocol Buffers define that parsing
concatenated messages merges them (the last value of a field wins, repeated fields append:
Encoding, protobuf.dev), so the constant part is serialised once and only what changes is
added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tritonclient.grpc import service_pb2

from .._errors import InputError
from .._specs import ModelSpec, TensorSpec
from .base import (
    DEFAULT_OPTIONS,
    CallOptions,
    InferReply,
    InferRequest,
    MemoryRef,
    OutputReply,
    Parameter,
)

_pb: Any = service_pb2  # generated at import, so type checkers see nothing in it

MAX_MESSAGE: Final = 2**31 - 1  # bytes; gRPC's own limit, an int32
_RAW_INPUT_TAG: Final = b"\x3a"  # field 7 (raw_input_contents), wire type 2


def prepare(request: InferRequest) -> bytes:
    """Serialise all that stays the same of a request."""
    message = _pb.ModelInferRequest(
        model_name=request.model_name, model_version=request.model_version
    )
    for tensor in request.inputs:
        entry = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        _place(entry.parameters, tensor.memory)
    for output in request.outputs:
        _place(message.outputs.add(name=output.name).parameters, output.memory)
    serialized: bytes = message.SerializeToString()
    return serialized


def compose(prepared: bytes, payloads: Sequence[memoryview], options: CallOptions) -> bytes:
    """Add to a prepared message what changes from call to call.

    Raises:
        InputError: the message is too large for gRPC.
    """
    if not payloads and options is DEFAULT_OPTIONS:
        return prepared
    parts: list[bytes | memoryview] = [prepared]
    if options is not DEFAULT_OPTIONS:
        parts.append(_serialize_options(options))
    size = sum(map(len, parts)) + sum(len(payload) for payload in payloads)
    if size > MAX_MESSAGE - 64 * len(payloads):
        raise InputError(
            f"the request is {size} bytes, gRPC takes {MAX_MESSAGE}; use shared memory or "
            "smaller batches"
        )
    for payload in payloads:
        parts += (_RAW_INPUT_TAG, varint(len(payload)), payload)
    return b"".join(parts)


def parse_reply(answer: bytes) -> InferReply:
    """Parse a serialised ModelInferResponse."""
    response = _pb.ModelInferResponse.FromString(answer)
    raw = response.raw_output_contents
    count = len(raw)
    return InferReply(
        response.model_name,
        response.model_version,
        response.id,
        _parameters(response.parameters) if response.parameters else {},
        [
            OutputReply(
                output.name,
                output.datatype,
                tuple(output.shape),
                # Index-aligned: an output in shared memory has an empty entry.
                raw[index] if index < count else b"",
            )
            for index, output in enumerate(response.outputs)
        ],
    )


def model_spec(name: str, version: str, metadata: Any, config: Any) -> ModelSpec:
    """Return what a model takes and gives, from its metadata and its config."""
    optional = {entry.name for entry in config.input if entry.optional}
    return ModelSpec.make(
        name,
        version,
        [_tensor_spec(entry, optional) for entry in metadata.inputs],
        [_tensor_spec(entry) for entry in metadata.outputs],
        max_batch_size=config.max_batch_size,
        is_decoupled=config.model_transaction_policy.decoupled,
        is_sequence=config.HasField("sequence_batching"),
        is_ensemble=config.platform == "ensemble" or config.HasField("ensemble_scheduling"),
        platform=metadata.platform,
    )


def _place(parameters: Any, memory: MemoryRef | None) -> None:
    if memory is None:
        return
    parameters["shared_memory_region"].string_param = memory.region
    parameters["shared_memory_byte_size"].int64_param = memory.byte_size
    if memory.offset:
        parameters["shared_memory_offset"].int64_param = memory.offset


def _serialize_options(options: CallOptions) -> bytes:
    message = _pb.ModelInferRequest(id=options.request_id)
    parameters = message.parameters
    if options.priority:
        parameters["priority"].uint64_param = options.priority
    if options.queue_timeout is not None:
        parameters["timeout"].int64_param = options.queue_timeout
    for name, value in options.parameters.items():
        match value:
            case bool():
                parameters[name].bool_param = value
            case int():
                parameters[name].int64_param = value
            case float():
                parameters[name].double_param = value
            case _:
                parameters[name].string_param = value
    serialized: bytes = message.SerializeToString()
    return serialized


def varint(value: int) -> bytes:
    """Encode a non-negative integer as a base-128 varint (Encoding, protobuf.dev)."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _tensor_spec(entry: Any, optional: set[str] | None = None) -> TensorSpec:
    return TensorSpec(
        entry.name, entry.datatype, tuple(entry.shape), entry.name in (optional or ())
    )


def _parameters(parameters: Any) -> dict[str, Parameter]:
    return {
        name: getattr(value, kind)
        for name, value in parameters.items()
        if (kind := value.WhichOneof("parameter_choice")) is not None
    }
