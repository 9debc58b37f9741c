"""`Executor`: checked tensors in, copied outputs out; where and how often to try."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ._datatypes import BYTES, Array, Shape, byte_size_of
from ._endings import Ending, ending_of, outgrown_output, public_error
from ._engine import Engine
from ._errors import CapacityError
from ._inputs import BytesTensor, PlacedTensor, Tensor
from ._layout import Layout, OutputPlace, Want, lay_out, want_output
from ._output_sizes import OutputSizes
from ._regions.base import Region
from ._replies import Received, Target, check_reply
from ._results import InferResult
from ._slots import RequestNames, Slot
from ._specs import ModelSpec
from ._transports.base import (
    CallOptions,
    InferReply,
    InputRef,
    MemoryRef,
    ServerError,
)

_REMEMBERED: Final = 256
_POISON: Final = 0xA5
_MOST_TRIES: Final = 8
"""A repeatable call grows its outputs this often at most; each doubles, so it is plenty."""


@dataclass(frozen=True, slots=True)
class Call:
    """One infer call as the caller asked for it, checked.

    Attributes:
        tensors: the inputs, in the model's order.
        outputs: names of the requested outputs.
        options: request id, priority and the like.
        target: where outputs are copied to; None for new arrays.
        is_owned_by_caller: True if ``target`` gives the caller's own arrays, into which no
            copy may begin after the caller left.
        may_queue: True for parts of a batch, which wait whatever ``max_waiting`` says.
    """

    tensors: Sequence[Tensor]
    outputs: tuple[str, ...]
    options: CallOptions
    target: Target | None = None
    is_owned_by_caller: bool = False
    may_queue: bool = False


@dataclass(slots=True)
class Request:
    """A request on one slot, ready to go.

    Attributes:
        message: the transport's prepared message.
        writes: inputs that are copied to their arrays in the slot first.
        inline: inputs that go inside the message, in its order.
        placed: regions of the caller's that the message refers to.
        outputs: the requested outputs.
        ready: for each output its array, where its shape was known before.
        room: gives the flat bytes of an output's place.
    """

    message: object
    writes: Sequence[tuple[Tensor, Array]]
    inline: Sequence[Tensor]
    placed: Sequence[Region]
    outputs: Sequence[OutputPlace]
    ready: Sequence[Array | None]
    room: Callable[[OutputPlace], Array]


class Executor:
    """Runs calls of one model through its slots.

    Args:
        engine: the slots.
        spec: what the model takes and gives.
        uses_shm: False for ``memory="wire"``: everything goes inline.
        sizes: what is known of variable outputs.
        is_repeatable: True if the model may run again when an output did not fit.
    """

    def __init__(
        self,
        engine: Engine,
        spec: ModelSpec,
        *,
        uses_shm: bool,
        sizes: OutputSizes,
        is_repeatable: bool,
    ) -> None:
        self.engine = engine
        self.spec = spec
        self.uses_shm = uses_shm
        self.sizes = sizes
        self.is_repeatable = is_repeatable
        self._layouts: dict[object, Layout] = {}
        self.names = RequestNames(spec.name, spec.version)

    def respecify(self, spec: ModelSpec) -> None:
        """The model changed at the server."""
        self.spec = spec
        self._layouts.clear()

    # One call

    async def run(self, call: Call) -> InferResult:
        """Run one call through one slot.

        Raises:
            CapacityError: an output did not fit, or there is no memory for the slot.
            ServerUnavailable, InferenceError: what the names say.

        Cancellation: the caller is released at once, the slot when the server answered.
        """
        slot = await self.engine.acquire(may_queue=call.may_queue)
        try:

            async def make() -> Request:
                layout = self.layout_for(call)
                await self.engine.fit(slot, layout.byte_size)
                return self._request(slot, layout, call)

            shapes = [tensor.shape for tensor in call.tensors]
            reply, received = await self.send(slot, make, shapes, call.options)
            arrays = await self._collect(slot, received, call)
            self.learn(received, shapes)
            return result_of(reply, arrays, call.options)
        finally:
            self.engine.unhold(slot)

    async def send(
        self,
        slot: Slot,
        make: Callable[[], Awaitable[Request]],
        shapes: Sequence[Shape],
        options: CallOptions,
    ) -> tuple[InferReply, list[Received]]:
        """Send a request, again where that is safe or allowed.

        Args:
            slot: held by the caller.
            make: makes the request; called again for each try.
            shapes: shapes of the inputs, under which output sizes are remembered.
            options: what changes from call to call.
        """
        tries = 0
        was_renewed = False
        while True:
            tries += 1
            request = await make()
            try:
                reply = await self._send_once(slot, request, options)
            except ServerError as error:
                is_lost = ending_of(error) is Ending.REGION_LOST
                if is_lost and slot.region is not None and not was_renewed:
                    was_renewed = True  # it never ran, so repeating it is safe
                    await self.engine.renew(slot)
                    continue
                outgrew = self._outgrew(error, shapes)
                if outgrew and self.is_repeatable and tries < _MOST_TRIES:
                    continue
                raise self._explain(error, options) from error
            return reply, check_reply(
                self.spec.name, reply, request.outputs, request.ready, request.room
            )

    async def _send_once(self, slot: Slot, request: Request, options: CallOptions) -> InferReply:
        engine = self.engine
        transport = engine.runtime.transport
        if engine.runtime.settings.poison:
            poison(request)
        if request.writes:
            await engine.offload(
                slot,
                lambda: _write_all(request.writes),
                sum(tensor.byte_size for tensor, _ in request.writes),
            )
        message = await engine.offload(
            slot,
            lambda: transport.compose(
                request.message, [tensor.payload() for tensor in request.inline], options
            ),
            sum(tensor.byte_size for tensor in request.inline),
        )
        return await engine.call(slot, message, request.placed)

    # Places

    def layout_for(self, call: Call) -> Layout:
        """Return the layout of a call, the same object for the same kind of call."""
        key = (call.outputs, *[_kind(tensor) for tensor in call.tensors])
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= _REMEMBERED:
                self._layouts.clear()
            layout = self._layouts[key] = self._lay_out(call)
        return layout

    def lease_layout(self, shapes: Mapping[str, Shape]) -> Layout:
        """Return the layout of a lease: these inputs, and every output that has a size."""
        key = tuple(shapes.items())
        layout = self._layouts.get(key)
        if layout is None:
            inputs = [
                Want(spec, shapes[name], byte_size_of(shapes[name], spec.datatype))
                for name, spec in self.spec.inputs.items()
                if name in shapes
            ]
            layout = lay_out(inputs, self._want_outputs(tuple(self.spec.outputs), shapes))
            self._layouts[key] = layout
        return layout

    def _lay_out(self, call: Call) -> Layout:
        shapes = {tensor.spec.name: tensor.shape for tensor in call.tensors}
        return lay_out(
            [
                Want(
                    tensor.spec,
                    tensor.shape,
                    None
                    if not self.uses_shm or isinstance(tensor, PlacedTensor)
                    else tensor.byte_size,
                )
                for tensor in call.tensors
            ],
            self._want_outputs(call.outputs, shapes),
        )

    def _want_outputs(self, names: Sequence[str], shapes: Mapping[str, Shape]) -> list[Want]:
        """Return what room the outputs want for inputs of these shapes."""
        if not self.uses_shm:
            return [Want(self.spec.outputs[name], None, None) for name in names]
        rows = self.spec.rows_of(shapes)
        return [
            want_output(self.spec.outputs[name], rows, self.sizes.room_for(name, shapes.values()))
            for name in names
        ]

    def _request(self, slot: Slot, layout: Layout, call: Call) -> Request:
        placed = [t.source.region for t in call.tensors if isinstance(t, PlacedTensor)]
        transport = self.engine.runtime.transport
        if placed:
            # Where the caller's own tensors lie changes from call to call.
            refs = [
                input_ref(tensor, slot.refer(place))
                for tensor, place in zip(call.tensors, layout.inputs, strict=True)
            ]
            prepared = slot.make_prepared(layout, self.names, transport, refs)
        else:
            prepared = slot.prepare(layout, self.names, transport)
        writes: list[tuple[Tensor, Array]] = []
        inline: list[Tensor] = []
        for tensor, array in zip(call.tensors, prepared.inputs, strict=True):
            if array is not None:
                writes.append((tensor, array))
            elif not isinstance(tensor, PlacedTensor):
                inline.append(tensor)
        return Request(
            prepared.message, writes, inline, placed, layout.outputs, prepared.outputs, slot.room
        )

    # Answers

    async def _collect(
        self, slot: Slot, received: Sequence[Received], call: Call
    ) -> dict[str, Array]:
        """Copy the outputs out, all in one go."""
        copies: list[Callable[[], Array]] = []
        total = 0
        for output in received:
            target = None if call.target is None else call.target(output.spec, output.shape)
            copies.append(_copy(output, target))
            total += output.raw.nbytes * (16 if output.spec.datatype == BYTES else 1)
        arrays: list[Array] = await self.engine.offload(
            slot,
            lambda: [copy() for copy in copies],
            total,
            must_finish=call.is_owned_by_caller,
        )
        return {output.spec.name: array for output, array in zip(received, arrays, strict=True)}

    def learn(self, received: Sequence[Received], shapes: Sequence[Shape]) -> None:
        """Remember how large the outputs were that came inline for want of a known size."""
        for output in received:
            if output.is_inline and self.uses_shm and output.raw.nbytes:
                self._learn(output.spec.name, shapes, output.raw.nbytes)

    def _learn(self, name: str, shapes: Sequence[Shape], byte_size: int) -> None:
        if self.sizes.learn(name, shapes, byte_size):
            self._layouts.clear()

    def _outgrew(self, error: ServerError, shapes: Sequence[Shape]) -> bool:
        """Tell whether an output did not fit, and remember what it needs."""
        found = outgrown_output(error)
        if found is None:
            return False
        self._learn(found[0], shapes, found[1])
        return True

    def _explain(self, error: ServerError, options: CallOptions) -> Exception:
        """Return the error the caller sees."""
        found = outgrown_output(error)
        if found is None:
            return public_error(error, model=self.spec.name, request_id=options.request_id)
        name, needed = found
        return CapacityError(
            f"model {self.spec.name!r}: output {name!r} needs {needed} bytes, more than its slot "
            "had. The model has run; the next call has room. Set output_bytes, or "
            "repeatable=True if the model may run twice",
            needed=needed,
            model_ran=True,
        )


def result_of(reply: InferReply, arrays: Mapping[str, Array], options: CallOptions) -> InferResult:
    """Put a result together."""
    return InferResult(
        arrays,
        model_name=reply.model_name,
        model_version=reply.model_version,
        request_id=options.request_id,
        parameters=reply.parameters,
    )


def input_ref(tensor: Tensor, memory: MemoryRef | None) -> InputRef:
    """Return how a message names an input; the caller's own place goes before ``memory``."""
    if isinstance(tensor, PlacedTensor):
        source = tensor.source
        memory = MemoryRef(source.region.name, source.offset, source.byte_size)
    return InputRef(tensor.spec.name, tensor.spec.datatype, tensor.shape, memory)


def poison(request: Request) -> None:
    """Fill the outputs' rooms, so that a backend that writes nothing shows."""
    for place in request.outputs:
        if place.offset is not None:
            request.room(place)[:] = _POISON


def _write_all(writes: Sequence[tuple[Tensor, Array]]) -> None:
    for tensor, array in writes:
        tensor.write(array)


def _kind(tensor: Tensor) -> object:
    """What of an input decides its place."""
    if isinstance(tensor, BytesTensor):
        return tensor.spec.name, tensor.shape, tensor.byte_size
    return tensor.spec.name, tensor.shape, isinstance(tensor, PlacedTensor)


def _write(tensor: Tensor, array: Array) -> Callable[[], None]:
    return lambda: tensor.write(array)


def _copy(output: Received, target: Array | None) -> Callable[[], Array]:
    if target is None:
        return output.copy

    def copy_into() -> Array:
        np.copyto(target, output.view(), casting="equiv")
        return target

    return copy_into


async def gather_all(calls: Sequence[Any]) -> list[Any]:
    """Wait for all of them, then raise the first error there was."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return list(results)
