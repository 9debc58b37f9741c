"""`DeviceExecutor`: calls of a model whose slots are in the memory of a GPU.

Inputs are copied to the slot by the GPU, from device tensors or through pinned memory, and the
request is sent when the GPU has done it: no order of streams crosses the protocol. Results
are copied into memory of their own, so that the slot is free for the next call. BYTES have no
place on a GPU and go inside the messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._calls import Call
from ._cuda import cudart
from ._cuda.arrays import DeviceArray
from ._cuda.countdown import Finish
from ._cuda.foreign import import_view, locate
from ._cuda.transfer import Pair, run_copies
from ._cuda.views import DeviceView
from ._datatypes import BYTES, DTYPES, Array, Shape
from ._engine import Engine
from ._executor import POISON, Executor
from ._received import Checked, Received
from ._requests import Request
from ._slots import Slot
from ._specs import ModelSpec, TensorSpec
from ._tensors import Tensor


class DeviceExecutor(Executor):
    """Runs calls of one model through slots on a GPU; see `Executor`."""

    _at_once = 0

    def __init__(self, engine: Engine, spec: ModelSpec, **options: Any) -> None:
        super().__init__(engine, spec, **options)
        assert engine.device is not None
        self._gpu = engine.device

    # Inputs

    def send(self, slot: Slot, request: Request, tensors: Sequence[Tensor], options: Any) -> Any:
        return self._send(slot, request, tensors, options)

    async def _write(self, slot: Slot, request: Request, tensors: Sequence[Tensor]) -> None:
        if slot.lent_streams:
            # The caller makes the inputs in place, on these streams.
            await self.engine.follow(slot, self._gpu.settle(slot.lent_streams))
        if self._poison:
            await self.engine.follow(slot, self._filled(request))
        pairs = [
            pair
            for tensor, array in zip(tensors, request.targets, strict=True)
            if array is not None
            for pair in tensor.copies(array)
        ]
        if pairs:
            await self._copy(slot, pairs)

    def _filled(self, request: Request) -> asyncio.Future[None]:
        def fill(finish: Finish) -> None:
            stream = self._gpu.streams.own()
            for place in request.outputs:
                if place.offset is not None:
                    room = request.room(place)
                    cudart.fill(room.view().address, POISON, room.nbytes, stream)
            self._gpu.streams.when_reached(stream, finish)

        return self._gpu.begin(fill)

    # Outputs

    async def _collect(self, slot: Slot, checked: Checked, call: Call) -> dict[str, Any]:
        arrays: dict[str, Any] = {}
        pairs: list[Pair] = []
        for output in checked.outputs:
            into = None if call.target is None else call.target(output.spec, output.shape)
            if output.spec.datatype == BYTES:
                arrays[output.spec.name] = output.copy(into)
                continue
            if into is None:
                into = self.new_array(output.spec, output.shape)
            arrays[output.spec.name] = into
            pairs.append((into, output.view()))
        await self._copy(slot, pairs, must_finish=call.is_owned_by_caller)
        return arrays

    async def views(self, slot: Slot, outputs: Sequence[Received]) -> dict[str, Any]:
        arrays: dict[str, Any] = {}
        pairs: list[Pair] = []
        for output in outputs:
            array = output.view()
            if output.is_inline and output.spec.datatype != BYTES:
                inline, array = array, self.new_array(output.spec, output.shape)
                pairs.append((array, inline))
            arrays[output.spec.name] = array
        if pairs:
            await self._copy(slot, pairs)
        return arrays

    def new_array(self, spec: TensorSpec, shape: Shape) -> Any:
        if spec.datatype == BYTES:
            return np.empty(shape, spec.dtype)
        return self.engine.runtime.results_on(self._gpu).empty(shape, spec.datatype)

    def own_array(self, spec: TensorSpec, shape: Shape) -> Any:
        return self.new_array(spec, shape)

    # Copies

    async def _copy(self, slot: Slot, pairs: list[Pair], *, must_finish: bool = False) -> None:
        """Copy, holding the slot until the GPU has done it."""
        await self.engine.follow(slot, self._begin(pairs), must_finish=must_finish)

    async def to_host(self, value: Any) -> Array:
        """Copy another library's tensor to the host."""
        view = import_view(value, self._gpu, f"model {self.spec.name!r}")
        packed = np.empty(view.shape, DTYPES[view.datatype])
        await asyncio.shield(self._begin([(packed, view)]))
        return packed

    def _begin(self, pairs: list[Pair]) -> asyncio.Future[None]:
        device = self._gpu
        if all(_device_of(side) in (device.id, _HOST) for pair in pairs for side in pair):
            return device.begin(lambda finish: run_copies(device, pairs, finish))
        return self.engine.runtime.spawn(self._copy_anywhere(pairs))

    async def _copy_anywhere(self, pairs: list[Pair]) -> None:
        """Copy where a tensor is on another GPU, or says no more than its address."""
        by_device: dict[int, list[Pair]] = {}
        for target, source in pairs:
            pair = await self._located(target), await self._located(source)
            places = (_device_of(side) for side in reversed(pair))
            # The other one's thread can order its streams.
            where = next((p for p in places if p not in (self._gpu.id, _HOST)), self._gpu.id)
            assert where is not None
            by_device.setdefault(where, []).append(pair)
        work = []
        for device_id, share in by_device.items():
            device = await self.engine.runtime.open_device(device_id)
            work.append(
                device.begin(lambda done, d=device, s=share: run_copies(d, s, done))  # type: ignore[misc]
            )
        results = await asyncio.gather(*work, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _located(self, side: Any) -> Any:
        if not isinstance(side, DeviceView) or side.device_id is not None:
            return side
        return await self._gpu.ask(lambda: locate(side))


_HOST = -1


def _device_of(side: Any) -> int | None:
    """Return the ordinal of the GPU, _HOST for a numpy array, None if it is not known."""
    if isinstance(side, (DeviceView, DeviceArray)):
        return side.device_id
    return _HOST
