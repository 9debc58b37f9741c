"""`Executor`: checked tensors in, copied outputs out; where and how often to try."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Final

import numpy as np

from ._attempts import Attempts
from ._calls import Call, CallChecker
from ._copying import Job
from ._cuda.device import Device
from ._datatypes import Array, Shape
from ._engine import Engine
from ._errors import CapacityError, ServerUnavailable
from ._output_sizes import OutputSizes
from ._planning import Planner
from ._received import Checked, Received
from ._recycling import SMALLEST
from ._replies import check_reply
from ._requests import Request, settle_all
from ._results import InferResult
from ._slots import Slot
from ._specs import ModelSpec, TensorSpec
from ._tensors import Tensor
from ._transports.base import DEFAULT_OPTIONS, CallOptions, InferReply, ServerError

POISON: Final = 0xA5


class Executor:
    """Runs calls of one model through its slots, in host memory or over the wire.

    Args:
        engine: the slots.
        spec: what the model takes and gives.
        uses_shm: False for ``memory="wire"``: everything goes inline.
        sizes: what is known of variable outputs.
        is_repeatable: True if the model may run again when an output did not fit.
    """

    _at_once = SMALLEST
    """Outputs of fewer bytes are copied as soon as the answer is there."""

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
        self.device: Device | None = engine.device
        self.spec = spec
        self.uses_shm = uses_shm
        self.sizes = sizes
        self.is_repeatable = is_repeatable
        self._poison = engine.runtime.settings.poison
        self.respecify(spec)

    def respecify(self, spec: ModelSpec) -> None:
        """The model changed at the server."""
        self.spec = spec
        self.checker = CallChecker(spec, self.device)
        self.planner = Planner(
            spec,
            self.engine.runtime.transport,
            self.sizes,
            uses_shm=self.uses_shm,
            is_on_device=self.device is not None,
            makes_plain=not self._poison,
        )

    # One call

    async def run(self, call: Call) -> InferResult:
        """Run one call through one slot.

        Raises:
            CapacityError: an output did not fit, or there is no memory for the slot.
            ServerUnavailable, InferenceError: what the names say.

        Cancellation: the caller is released at once, the slot when the server answered.
        """
        engine, planner = self.engine, self.planner
        layout = planner.layouts.get(call.kind) or planner.layout_for(call)
        slot = engine.acquire_nowait()
        if slot is None or layout.byte_size > slot.byte_size:
            slot = await self.take(slot, layout.byte_size, may_queue=call.may_queue)
        try:
            attempts: Attempts | None = None
            while True:
                request = slot.requests.get(layout) or planner.request_for(slot, layout, call)
                try:
                    reply = await self.send(slot, request, call.sent, call.options)
                    break
                except ServerError as error:
                    attempts = attempts or Attempts(self, may_move=True)
                    await attempts.recover(error, slot, request, call.options)
                layout = planner.layout_for(call)  # an output may have outgrown the one before
                if layout.byte_size > slot.byte_size:
                    await self.make_room(slot, layout.byte_size, attempts)
            checked = request.checked
            if checked.reply is not reply:
                checked = check_reply(self.spec.name, reply, request)
            if call.target is None and checked.copy_cost < self._at_once:
                arrays: dict[str, Any] = {name: copy() for name, copy in checked.copiers}
            else:
                arrays = await self._collect(slot, checked, call)
                arrays.update(call.given or {})
            if checked.has_inline:
                self.learn(checked.outputs, request.shapes)
            return InferResult(
                arrays,
                reply.model_name,
                reply.model_version,
                call.options.request_id,
                reply.parameters,
                self.to_host,
            )
        finally:
            engine.unhold(slot)

    async def take(self, slot: Slot | None, byte_size: int, *, may_queue: bool = False) -> Slot:
        """Take a slot that has room for so many bytes, waiting for it in line.

        Where there is no memory for another slot, but others are in use, one of those is waited
        for.

        Args:
            slot: one that was taken already, or None.
            byte_size: the room.
            may_queue: wait whatever ``max_waiting`` says, as the parts of one request do.

        Raises:
            PoolClosed, PoolExhausted: what the names say.
            CapacityError, RegistrationError, ServerUnavailable: as for ``make_room``.

        Cancellation: safe; the slot is given back.
        """
        engine = self.engine
        while True:
            if slot is None:
                slot = engine.acquire_nowait() or await engine.acquire(may_queue=may_queue)
            if not self.uses_shm or byte_size <= slot.byte_size:
                return slot
            try:
                await self.make_room(slot, byte_size)
            except BaseException as error:
                if not isinstance(error, CapacityError) or not engine.refuse(slot):
                    engine.unhold(slot)
                    raise
                slot = None
            else:
                return slot

    async def make_room(self, slot: Slot, byte_size: int, attempts: Attempts | None = None) -> None:
        """See to it that a slot has a region of at least ``byte_size`` bytes.

        Raises:
            CapacityError, RegistrationError: there is none to be had.
            ServerUnavailable: the server does not answer, and is not to be waited for.

        Cancellation: the change goes on and holds the slot until it is done.
        """
        while True:
            try:
                await self.engine.fit(slot, byte_size)
            except ServerUnavailable as error:
                attempts = attempts or Attempts(self, may_move=True)
                await attempts.wait(error)
            else:
                return

    def send(
        self, slot: Slot, request: Request, tensors: Sequence[Tensor], options: CallOptions
    ) -> Awaitable[InferReply]:
        """Write the inputs and send the message; the answer is to be awaited.

        Awaiting it raises ServerError if the server, or the way to it, answered with an error.
        """
        if request.plain is not None and options is DEFAULT_OPTIONS:
            request.write(tensors)
            return self.engine.call(slot, request.plain)
        return self._send(slot, request, tensors, options)

    async def _send(
        self, slot: Slot, request: Request, tensors: Sequence[Tensor], options: CallOptions
    ) -> InferReply:
        engine = self.engine
        await self._write(slot, request, tensors)
        compose = engine.runtime.transport.compose
        inline = request.inline(tensors)
        message = await engine.offload(
            slot,
            lambda: compose(request.prepared, [t.payload() for t in inline], options),
            sum(tensor.byte_size for tensor in inline),
        )
        await settle_all(request.placed)
        return await engine.call(slot, message, request.placed)

    async def _write(self, slot: Slot, request: Request, tensors: Sequence[Tensor]) -> None:
        """Copy the inputs to their places."""
        if self._poison:
            for place in request.outputs:
                if place.offset is not None:
                    request.room(place)[:] = POISON
        await self.engine.copy(slot, request.jobs(tensors), request.byte_size_written)

    # Answers

    async def _collect(self, slot: Slot, checked: Checked, call: Call) -> dict[str, Any]:
        """Copy the outputs out, all in one go."""
        arrays: dict[str, Any] = {}
        jobs: list[Job] = []
        for output in checked.outputs:
            spec = output.spec
            into = None if call.target is None else call.target(spec, output.shape)
            if into is None:
                into = self.new_array(spec, output.shape)
            arrays[spec.name] = into
            jobs += output.jobs(into)
        await self.engine.copy(slot, jobs, checked.copy_cost, must_finish=call.is_owned_by_caller)
        return arrays

    async def views(self, slot: Slot, outputs: Sequence[Received]) -> dict[str, Any]:
        """Return the outputs of a lease, without a copy where that is possible."""
        return await self.engine.offload(
            slot,
            lambda: {output.spec.name: output.view() for output in outputs},
            sum(output.view_cost for output in outputs),
        )

    def new_array(self, spec: TensorSpec, shape: Shape) -> Any:
        """Return an array for a result, to be copied to."""
        return self.engine.runtime.recycler.empty(shape, spec.dtype)

    def own_array(self, spec: TensorSpec, shape: Shape) -> Any:
        """Return an array for an input of a lease that has no place in its slot."""
        return np.empty(shape, spec.dtype)

    def learn(self, received: Sequence[Received], shapes: Sequence[Shape]) -> None:
        """Remember how large the outputs were that came inline for want of a known size."""
        for output in received:
            if output.is_inline and self.uses_shm and output.raw.nbytes:
                self.outgrew(output.spec.name, shapes, output.raw.nbytes)

    async def to_host(self, value: Any) -> Array:
        """Copy to the host what ``out=`` had an output put into."""
        return np.asarray(value)

    def outgrew(self, name: str, shapes: Sequence[Shape], byte_size: int) -> None:
        """Remember how large a variable output was for inputs of these shapes."""
        if self.sizes.learn(name, shapes, byte_size):
            self.planner.layouts.clear()
