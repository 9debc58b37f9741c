"""`Lease`: a slot that is the caller's for a while, to be filled and read in place.

What holds after the end of the block, however it ends:

- the mappings ``lease.inputs`` and every result raise LeaseReleased;
- arrays that the caller kept keep their memory and their bytes: the slot is parked until
  the last of them dies;
- a call that is still with the server holds the slot until it is answered.
"""

from __future__ import annotations

import enum
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from ._arrays import Root, place_array, room_array
from ._attempts import Attempts
from ._cuda.foreign import stream_handle
from ._datatypes import Shape
from ._errors import InferTimeout, InputError, LeaseReleased, RegionBusy
from ._executor import Executor
from ._inputs import check_input
from ._layout import InputPlace, Layout, OutputPlace
from ._options import USE_DEFAULT, UseDefault, make_options, seconds
from ._replies import check_reply
from ._requests import Request, input_ref
from ._results import InferResult, LeaseArrays
from ._slots import Slot
from ._tensors import DenseTensor, PlacedTensor, Tensor
from ._transports.base import InputRef, MemoryRef, OutputRef, Parameter, ServerError


class LeaseState(enum.Enum):
    """Life of a lease; it never goes back."""

    NEW = "not entered yet"
    ACTIVE = "active"
    RELEASED = "released"


class LeasedTensor(DenseTensor):
    """An input that is in its place already."""

    __slots__ = ()


class Lease:
    """A slot for the time of an ``async with`` block, made by `Model.lease`."""

    def __init__(
        self,
        executor: Executor,
        shapes: Mapping[str, Shape],
        *,
        timeout: float | None,
        place: str = "",
    ) -> None:
        self._executor = executor
        self._place = place
        self._shapes = dict(shapes)
        self._timeout = timeout
        self._state = LeaseState.NEW
        self._slot: Slot | None = None
        self._layout: Layout | None = None
        self._root: Root | None = None
        self._inputs = LeaseArrays({})
        self._results: list[weakref.ref[InferResult]] = []
        self._is_calling = False
        self._plain: tuple[Request, Sequence[Tensor]] | None = None

    def __repr__(self) -> str:
        name = self._executor.spec.name
        place = f", taken at {self._place}" if self._place else ""
        return f"<Lease of model {name!r}, {self._state.value}{place}>"

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Arrays over the slot by input name, of the leased shapes; write the inputs there.

        Raises:
            LeaseReleased: the block was left, or not entered yet.
        """
        self._active_slot()
        return self._inputs

    async def __aenter__(self) -> Self:
        """Wait for a slot, and for its memory.

        Raises:
            InferTimeout: the timeout passed.
            PoolClosed, PoolExhausted, CapacityError: what the names say.

        Cancellation: safe; the slot is given back.
        """
        if self._state is not LeaseState.NEW:
            raise LeaseReleased(f"{self!r} cannot be entered; ask the model for another lease")
        executor, engine = self._executor, self._executor.engine
        engine.runtime.check_usable()
        self._state = LeaseState.RELEASED  # unless all of this succeeds
        layout = executor.planner.lease_layout(self._shapes)
        try:
            with engine.runtime.deadlines.limit(self._timeout):
                slot = await executor.take(None, layout.byte_size)
        except TimeoutError as error:
            raise InferTimeout(
                f"model {executor.spec.name!r}: no slot within {self._timeout} seconds; "
                f"{engine.pool!r}"
            ) from error
        if not executor.uses_shm:
            self._root = np.empty(layout.byte_size, np.uint8)
        elif slot.region is not None:
            self._root = slot.lend_root()
        self._slot, self._layout = slot, layout
        self._inputs = LeaseArrays(
            {place.spec.name: self._input_array(place) for place in layout.inputs}
        )
        self._state = LeaseState.ACTIVE
        engine.leases.add(self)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._state is not LeaseState.ACTIVE:
            return
        slot = self._active_slot()
        self._state = LeaseState.RELEASED
        self._inputs.expire()
        for reference in self._results:
            if (result := reference()) is not None:
                result.expire()
        self._results.clear()
        self._root = self._slot = self._plain = None
        engine = self._executor.engine
        engine.leases.discard(self)
        engine.unhold(slot)

    async def infer(
        self,
        inputs: Mapping[str, object] | None = None,
        *,
        shapes: Mapping[str, Sequence[int]] | None = None,
        outputs: Sequence[str] | None = None,
        timeout: float | None | UseDefault = USE_DEFAULT,
        queue_timeout: float | None = None,
        request_id: str = "",
        priority: int = 0,
        parameters: Mapping[str, Parameter] | None = None,
    ) -> InferResult:
        """Run the model on what is in the slot. May be repeated, one call at a time.

        Args:
            inputs: values for inputs that are not leased (BYTES, optional ones), and for
                leased ones, which are copied to their place.
            shapes: shapes with fewer rows than leased; the first rows are used.
            outputs: names of the wanted outputs; all by default.
            timeout: seconds for this call; the lease's by default, None for ever.
            queue_timeout: seconds the request may wait in the server's queue.
            request_id: an id of the caller's, sent back by the server.
            priority: Triton's request priority, 0 for the model's default.
            parameters: request parameters for the model.

        Returns:
            Outputs as views of the slot, overwritten by this lease's next infer. Outputs
            whose size was not known when the lease began are read-only arrays.

        Raises:
            LeaseReleased: the block was left.
            RegionBusy: the previous call of this lease has not been answered.
            InputError, InferTimeout, InferenceError, CapacityError, ServerUnavailable: as
                for `Model.infer`.

        Cancellation: ends the waiting. The lease cannot infer again before the server has
        answered, and its slot is not reused before that.
        """
        slot = self._active_slot()
        executor = self._executor
        executor.engine.runtime.check_usable()
        if self._is_calling or slot.holds > 1:
            raise RegionBusy(
                f"{self!r}: its previous call has not been answered yet; take another lease"
            )
        limit = self._timeout if timeout is USE_DEFAULT else seconds(timeout)
        options = make_options(request_id, priority, queue_timeout, parameters)
        wanted = (
            executor.spec.output_names
            if outputs is None
            else executor.spec.check_output_names(outputs)
        )
        is_plain = not inputs and not shapes and outputs is None
        tensors = None if is_plain and self._plain else self._tensors(inputs or {}, shapes or {})
        self._is_calling = True
        try:
            with executor.engine.runtime.deadlines.limit(limit):
                attempts: Attempts | None = None
                while True:
                    made = self._plain if tensors is None else self._request(slot, tensors, wanted)
                    assert made is not None
                    request, sent = made
                    try:
                        reply = await executor.send(slot, request, sent, options)
                        break
                    except ServerError as error:
                        attempts = attempts or Attempts(executor, may_move=False)
                        await attempts.recover(error, slot, request, options)
                        self._plain = None
                        tensors = tensors or self._tensors({}, {})
                received = check_reply(executor.spec.name, reply, request).outputs
                arrays = await executor.views(slot, received)
        except TimeoutError as error:
            raise InferTimeout(
                f"model {executor.spec.name!r}: no answer within {limit} seconds; the slot is kept "
                "until the server has answered"
            ) from error
        finally:
            self._is_calling = False
        executor.learn(received, request.shapes)
        # The next call is the same, unless an output is to come another way by then.
        self._plain = made if is_plain and not any(o.is_inline for o in received) else None
        result = InferResult(
            arrays,
            reply.model_name,
            reply.model_version,
            options.request_id,
            reply.parameters,
            executor.to_host,
        )
        self._results = [reference for reference in self._results if reference() is not None]
        self._results.append(weakref.ref(result))
        return result

    def release_after(self, stream: object) -> None:
        """Have the slot wait for what is queued on a stream, too.

        The streams that arrays of the lease were given to by DLPack are known. This is for
        others: before the next `infer` is sent, and before the slot is used by anyone else
        after the block, what is queued there by then is waited for. For a model in host
        memory it does nothing.

        Args:
            stream: a stream of torch, CuPy or cuda.core on the model's GPU, or its handle.

        Raises:
            InputError: it is no stream.
            LeaseReleased: the block was left.
        """
        slot = self._active_slot()
        handle = stream_handle(stream)
        if self._executor.device is not None:
            slot.lent_streams.add(handle)

    # Inputs

    def _input_array(self, place: InputPlace) -> Any:
        array = place_array(self._root, place)
        return self._executor.own_array(place.spec, place.shape) if array is None else array

    def _tensors(
        self, inputs: Mapping[str, object], shapes: Mapping[str, Sequence[int]]
    ) -> list[Tensor]:
        """Return all inputs of a call, in the model's order: given ones and leased ones."""
        spec = self._executor.spec
        arrays = self._inputs.arrays
        for name in shapes:
            if name not in arrays:
                raise InputError(f"{self!r}: {name!r} is not leased; leased are {sorted(arrays)}")
        spec.check_input_names({**arrays, **inputs})
        tensors: dict[str, Tensor] = {}
        for name in spec.inputs:
            if name in inputs:
                tensors[name] = check_input(spec, name, inputs[name], self._executor.device)
                self._check_rows(name, tensors[name].shape)
            elif name in arrays:
                shape = tuple(shapes.get(name, arrays[name].shape))
                self._check_rows(name, shape)
                rows = arrays[name][: shape[0]] if shape else arrays[name]
                tensors[name] = LeasedTensor(spec.inputs[name], rows)
        spec.rows_of({name: tensor.shape for name, tensor in tensors.items()})
        return list(tensors.values())

    def _check_rows(self, name: str, shape: Shape) -> None:
        leased = self._shapes.get(name)
        if leased is None or shape == leased:
            return
        if len(shape) != len(leased) or shape[1:] != leased[1:] or not 0 <= shape[0] <= leased[0]:
            raise InputError(
                f"{self!r}, input {name!r}: leased is {list(leased)}; a call may have fewer rows "
                f"of the same shape, got {list(shape)}"
            )

    def _request(
        self, slot: Slot, tensors: Sequence[Tensor], outputs: Sequence[str]
    ) -> tuple[Request, Sequence[Tensor]]:
        """Return a request, and those inputs that are to be copied or go inside the message."""
        assert self._layout is not None
        arrays = self._inputs.arrays
        places = {place.spec.name: place for place in self._layout.inputs}
        sent: list[Tensor] = []
        targets: list[Any] = []
        refs: list[InputRef] = []
        for given in tensors:
            tensor = given
            name = tensor.spec.name
            place = places.get(name)
            memory = None
            if place is not None and not isinstance(tensor, PlacedTensor):
                array = arrays[name][: tensor.shape[0]]
                if not isinstance(tensor, LeasedTensor):
                    sent.append(tensor)
                    targets.append(array)
                    tensor = LeasedTensor(tensor.spec, array)
                if place.offset is not None and slot.region is not None:
                    memory = MemoryRef(slot.region.name, place.offset, tensor.byte_size)
            if memory is None and not isinstance(tensor, PlacedTensor):
                sent.append(tensor)
                targets.append(None)
            refs.append(input_ref(tensor, memory))
        wanted = [self._output_place(name) for name in outputs]

        def prepare() -> object:
            out = [OutputRef(place.spec.name, slot.refer(place)) for place in wanted]
            return self._executor.planner.prepare(refs, out)

        placed = [t.source.region for t in tensors if isinstance(t, PlacedTensor)]
        key = (
            self._layout,
            tuple((tensor.spec.name, tensor.shape) for tensor in tensors),
            tuple((place.spec.name, place.offset) for place in wanted),
        )
        request = self._executor.planner.make_request(
            prepare() if placed else slot.remember(key, prepare),
            shapes=[tensor.shape for tensor in tensors],
            targets=targets,
            placed=placed,
            outputs=wanted,
            ready=[place_array(self._root, place) for place in wanted],
            room=self._room,
        )
        return request, sent

    # Outputs

    def _output_place(self, name: str) -> OutputPlace:
        assert self._layout is not None
        place = next(place for place in self._layout.outputs if place.spec.name == name)
        room = self._executor.sizes.room_for(name, self._shapes.values())
        if place.shape is None and room is not None and room > place.byte_size:
            # It outgrew the slot, which cannot grow under a lease: let it come inline.
            return OutputPlace(place.spec, None, 0, None)
        return place

    def _room(self, place: OutputPlace) -> Any:
        return room_array(self._root, place)

    def _active_slot(self) -> Slot:
        if self._state is not LeaseState.ACTIVE or self._slot is None:
            raise LeaseReleased(f"{self!r}: use it inside its `async with` block")
        return self._slot
