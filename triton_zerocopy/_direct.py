"""`Client.infer`: the low level, one request from and into the caller's own regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._arrays import room_array
from ._datatypes import BYTES, datatype_of, encode_bytes
from ._endings import Ending, ending_of, hand_over, is_unreached, outgrown_output, public_error
from ._errors import CapacityError, InputError, ServerUnavailable
from ._layout import OutputPlace
from ._regions.base import Region, RegionTensor, begin_calls
from ._replies import check_reply
from ._requests import Request, settle_all
from ._results import InferResult
from ._retry import Retries
from ._runtime import Runtime
from ._specs import TensorSpec
from ._transports.base import (
    CallOptions,
    InferReply,
    InferRequest,
    InputRef,
    MemoryRef,
    OutputRef,
    ServerError,
)
from ._waiter import Waiter


async def infer_direct(
    runtime: Runtime,
    model_name: str,
    model_version: str,
    inputs: Mapping[str, object],
    outputs: Mapping[str, RegionTensor] | Sequence[str] | None,
    options: CallOptions,
) -> InferResult:
    """Send one request; see `Client.infer`."""
    placed: Mapping[str, RegionTensor] = outputs if isinstance(outputs, Mapping) else {}
    for name, place in placed.items():
        if not isinstance(place, RegionTensor):
            raise InputError(
                f"output {name!r}: expected a Region.tensor, got {type(place).__name__}"
            )
    tensors = [*placed.values(), *inputs.values()]
    regions = list(
        {id(t.region): t.region for t in tensors if isinstance(t, RegionTensor)}.values()
    )
    for region in regions:
        region.join_caller()
    was_renewed, retries = False, Retries(runtime.settings.retry)
    while True:
        # Anew each time: a region that was lost has another name when it is back.
        message = await _compose(runtime, model_name, model_version, inputs, outputs, options)
        await settle_all(regions)
        try:
            reply = await _call(runtime, message, regions)
            break
        except ServerError as error:
            if ending_of(error) is Ending.REGION_LOST and regions and not was_renewed:
                # It never ran, so repeating it is safe.
                try:
                    await runtime.protect(runtime.regions.renew(regions))
                except ServerUnavailable as away:
                    await retries.wait(away)
                else:
                    was_renewed = True
                continue
            found = outgrown_output(error)
            if found is not None:
                raise CapacityError(
                    f"model {model_name!r}: output {found[0]!r} needs {found[1]} bytes, more than "
                    "its place in the region has; the model has run",
                    needed=found[1],
                    model_ran=True,
                ) from error
            problem = public_error(error, model=model_name, request_id=options.request_id)
            if not isinstance(problem, ServerUnavailable) or not is_unreached(error):
                raise problem from error
            problem.__cause__ = error
            await retries.wait(problem)
    return await _result(
        runtime, model_name, reply, placed, options, names=None if outputs is None else [*outputs]
    )


async def _compose(
    runtime: Runtime,
    model_name: str,
    model_version: str,
    inputs: Mapping[str, object],
    outputs: Mapping[str, RegionTensor] | Sequence[str] | None,
    options: CallOptions,
) -> object:
    refs: list[InputRef] = []
    payloads: list[memoryview] = []
    for name, value in inputs.items():
        ref, payload = _input(name, value)
        refs.append(ref)
        if payload is not None:
            payloads.append(payload)
    placed: Mapping[str, RegionTensor] = outputs if isinstance(outputs, Mapping) else {}
    out_refs = [OutputRef(name, _memory(placed.get(name))) for name in outputs or ()]
    transport = runtime.transport
    prepared = transport.prepare(InferRequest(model_name, model_version, refs, out_refs))
    size = sum(map(len, payloads))
    return await runtime.run_copy(lambda: transport.compose(prepared, payloads, options), size)


async def _call(runtime: Runtime, message: object, regions: Sequence[Region]) -> InferReply:
    """Send a message; the regions count the call until it is answered, whoever waits."""
    waiter: Waiter[InferReply] = Waiter(runtime.loop)

    def end(*, is_ambiguous: bool) -> None:
        for region in regions:
            region.end_call(is_ambiguous=is_ambiguous)

    def done(reply: InferReply | None, error: BaseException | None) -> None:
        end(is_ambiguous=error is not None and ending_of(error) is Ending.AMBIGUOUS)
        hand_over(waiter, reply, error, at_once=False)

    begin_calls(regions)
    try:
        runtime.transport.infer(message, done)
    except BaseException:
        end(is_ambiguous=False)
        raise
    return await waiter


def _input(name: str, value: object) -> tuple[InputRef, memoryview | None]:
    if isinstance(value, RegionTensor):
        if 0 not in value.shape:
            return InputRef(name, value.datatype, value.shape, _memory(value)), None
        return InputRef(name, value.datatype, value.shape), memoryview(b"")
    if not isinstance(value, np.ndarray):
        raise InputError(
            f"input {name!r}: expected a Region.tensor or a numpy array, got {type(value).__name__}"
        )
    datatype = datatype_of(value.dtype)
    if datatype is None:
        raise InputError(f"input {name!r}: Triton has no datatype for {value.dtype}")
    if datatype == BYTES:
        return InputRef(name, datatype, value.shape), memoryview(encode_bytes(value))
    native: np.ndarray[Any, Any] = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
    payload = native.reshape(-1).view(np.uint8).data
    return InputRef(name, datatype, value.shape), payload


def _memory(tensor: RegionTensor | None) -> MemoryRef | None:
    if tensor is None or tensor.byte_size == 0:
        return None
    return MemoryRef(tensor.region.name, tensor.offset, tensor.byte_size)


async def _result(
    runtime: Runtime,
    model_name: str,
    reply: InferReply,
    placed: Mapping[str, RegionTensor],
    options: CallOptions,
    *,
    names: Sequence[str] | None,
) -> InferResult:
    by_name = {output.name: output for output in reply.outputs}
    places = []
    for name in names if names is not None else by_name:
        tensor = placed.get(name)
        reported = by_name.get(name)
        datatype = tensor.datatype if tensor else reported.datatype if reported else BYTES
        spec = TensorSpec(name, datatype, ())
        if tensor is None or tensor.byte_size == 0:
            places.append(OutputPlace(spec, None, 0, None))
        else:
            places.append(OutputPlace(spec, None, tensor.byte_size, tensor.offset))

    def room(place: OutputPlace) -> Any:
        return room_array(placed[place.spec.name].region.root(), place)

    request = Request(places, [None] * len(places), room)
    received = check_reply(model_name, reply, request).outputs
    arrays = await runtime.run_copy(
        lambda: {
            output.spec.name: output.copy() if output.is_inline else output.view()
            for output in received
        },
        sum(output.copy_cost if output.is_inline else output.view_cost for output in received),
    )
    return InferResult(
        arrays, reply.model_name, reply.model_version, options.request_id, reply.parameters
    )
