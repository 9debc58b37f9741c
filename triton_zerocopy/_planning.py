"""`Planner`: where the tensors of a call lie, and the requests that say so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ._calls import Call
from ._datatypes import BYTES, Shape, byte_size_of
from ._layout import (
    ALIGNMENT,
    DEVICE_ALIGNMENT,
    Layout,
    OutputPlace,
    Want,
    lay_out,
    want_output,
)
from ._output_sizes import OutputSizes
from ._regions.base import Region
from ._requests import Request, input_ref
from ._runtime import ON_LOOP_BYTES
from ._slots import Slot
from ._specs import ModelSpec, TensorSpec
from ._tensors import PlacedTensor, Tensor
from ._transports.base import DEFAULT_OPTIONS, InferRequest, InputRef, OutputRef, Transport

_REMEMBERED: Final = 256


class Planner:
    """Plans the calls of one model, and knows the plans it made.

    Args:
        spec: what the model takes and gives.
        transport: prepares the messages.
        sizes: what is known of variable outputs.
        uses_shm: False for ``memory="wire"``: everything goes inline.
        is_on_device: True for slots on a GPU, where BYTES have no place.
        makes_plain: True if requests may be sent as they were made, see `Request`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        transport: Transport,
        sizes: OutputSizes,
        *,
        uses_shm: bool,
        is_on_device: bool,
        makes_plain: bool,
    ) -> None:
        self._spec = spec
        self._transport = transport
        self._sizes = sizes
        self._uses_shm = uses_shm
        self._is_on_device = is_on_device
        self._makes_plain = makes_plain
        self._alignment = DEVICE_ALIGNMENT if is_on_device else ALIGNMENT
        self.layouts: dict[object, Layout] = {}
        """Those that were made, by the kind of call."""

    def layout_for(self, call: Call) -> Layout:
        """Make the layout of a call, as the sizes of outputs are known now, and keep it."""
        return self._keep(call.kind, self._lay_out(call))

    def lease_layout(self, shapes: Mapping[str, Shape]) -> Layout:
        """Return the layout of a lease: these inputs, and every output that has a size."""
        key = tuple(shapes.items())
        layout = self.layouts.get(key)
        if layout is None:
            inputs = [
                Want(spec, shapes[name], byte_size_of(shapes[name], spec.datatype))
                for name, spec in self._spec.inputs.items()
                if name in shapes
            ]
            outputs = self._want_outputs(tuple(self._spec.outputs), shapes)
            layout = self._keep(key, lay_out(inputs, outputs, self._alignment))
        return layout

    def _keep(self, key: object, layout: Layout) -> Layout:
        if len(self.layouts) >= _REMEMBERED:
            self.layouts.clear()
        self.layouts[key] = layout
        return layout

    def _lay_out(self, call: Call) -> Layout:
        shapes = {tensor.spec.name: tensor.shape for tensor in call.tensors}
        return lay_out(
            [
                Want(
                    tensor.spec,
                    tensor.shape,
                    None
                    if isinstance(tensor, PlacedTensor) or not self._is_shared(tensor.spec)
                    else tensor.byte_size,
                )
                for tensor in call.tensors
            ],
            self._want_outputs(call.kind.outputs, shapes),
            self._alignment,
        )

    def _is_shared(self, spec: TensorSpec) -> bool:
        """Tell whether a tensor goes through the slot's memory, not inside the message."""
        return self._uses_shm and not (self._is_on_device and spec.datatype == BYTES)

    def _want_outputs(self, names: Sequence[str], shapes: Mapping[str, Shape]) -> list[Want]:
        """Return what room the outputs want for inputs of these shapes."""
        rows = self._spec.rows_of(shapes) if self._uses_shm else None
        return [
            want_output(spec, rows, self._sizes.room_for(spec.name, shapes.values()))
            if self._is_shared(spec)
            else Want(spec, None, None)
            for spec in (self._spec.outputs[name] for name in names)
        ]

    def request_for(self, slot: Slot, layout: Layout, call: Call) -> Request:
        """Return the request of a call in a slot, which keeps it for the next one."""
        if call.kind.has_placed:
            # Where the caller's own tensors lie changes from call to call.
            return self._prepare(slot, layout, call.tensors)
        request = self._prepare(slot, layout)
        slot.keep(layout, request)
        return request

    def _prepare(
        self, slot: Slot, layout: Layout, tensors: Sequence[Tensor] | None = None
    ) -> Request:
        """Prepare a request, whatever will be in its inputs, or with some of the caller's."""
        if tensors is None:
            inputs = [
                InputRef(place.spec.name, place.spec.datatype, place.shape, slot.refer(place))
                for place in layout.inputs
            ]
        else:
            inputs = [
                input_ref(tensor, slot.refer(place))
                for tensor, place in zip(tensors, layout.inputs, strict=True)
            ]
        outputs = [OutputRef(place.spec.name, slot.refer(place)) for place in layout.outputs]
        placed = [t.source.region for t in tensors or () if isinstance(t, PlacedTensor)]
        given: Sequence[Tensor | None] = tensors or [None] * len(inputs)
        return self.make_request(
            self.prepare(inputs, outputs),
            shapes=[place.shape for place in layout.inputs],
            targets=[
                slot.array(place)
                for place, tensor in zip(layout.inputs, given, strict=True)
                if not isinstance(tensor, PlacedTensor)
            ],
            placed=placed,
            outputs=layout.outputs,
            ready=[slot.array(place) for place in layout.outputs],
            room=slot.room,
        )

    def prepare(self, inputs: Sequence[InputRef], outputs: Sequence[OutputRef]) -> object:
        """Prepare a message for the model."""
        spec = self._spec
        return self._transport.prepare(InferRequest(spec.name, spec.version, inputs, outputs))

    def make_request(
        self,
        prepared: object,
        *,
        shapes: Sequence[Shape],
        targets: Sequence[Any],
        placed: Sequence[Region],
        outputs: Sequence[OutputPlace],
        ready: Sequence[Any],
        room: Callable[[OutputPlace], Any],
    ) -> Request:
        """Make a request; what the arguments are is told there."""
        request = Request(outputs, ready, room, prepared, None, shapes, targets, placed)
        is_plain = not placed and not any(array is None for array in targets)
        if is_plain and request.byte_size_written <= ON_LOOP_BYTES and self._makes_plain:
            request.plain = self._transport.compose(prepared, (), DEFAULT_OPTIONS)
        return request
