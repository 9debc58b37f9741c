"""`Model`: one model of one server, with its slots."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Self

from ._calls import is_heavy
from ._cuda.device import Device
from ._device_executor import DeviceExecutor
from ._engine import Engine
from ._errors import InferenceError, InferTimeout, PoolClosed
from ._executor import Executor
from ._lease import Lease
from ._options import USE_DEFAULT, UseDefault, make_options, seconds
from ._outliving import gather_all, outlive
from ._output_sizes import OutputSizes
from ._places import calling_place
from ._results import InferResult
from ._runtime import Runtime
from ._slot_states import PoolStatistics
from ._slots import SlotRange
from ._specs import ModelSpec, TensorSpec
from ._split import run_split
from ._transports.base import Parameter


class ModelState(enum.Enum):
    """Life of a model object; it never goes back."""

    OPEN = "open"
    CLOSED = "closed"


class Model:
    """One model of one server, made by `Client.model`.

    It belongs to its client's event loop and dies with its client.
    """

    def __init__(
        self,
        runtime: Runtime,
        spec: ModelSpec,
        *,
        uses_shm: bool,
        device: Device | None,
        slots: SlotRange,
        max_waiting: int | None,
        shapes: Mapping[str, Sequence[int]] | None,
        output_bytes: Mapping[str, int],
        is_repeatable: bool,
        timeout: float | None,
    ) -> None:
        for name in output_bytes:
            spec.check_output_names([name])
        self._runtime = runtime
        self._slots = slots
        self._timeout = timeout
        self._state = ModelState.OPEN
        self._closed_hook: Callable[[Model], object] = lambda _: None
        self._engine = Engine(
            runtime,
            spec.name,
            device=device,
            slots=slots,
            max_waiting=max_waiting,
            is_ensemble=spec.is_ensemble,
        )
        self._executor = (Executor if device is None else DeviceExecutor)(
            self._engine,
            spec,
            uses_shm=uses_shm,
            sizes=OutputSizes(output_bytes),
            is_repeatable=is_repeatable,
        )
        self._shapes = None if shapes is None else spec.lease_shapes(shapes)

    def __repr__(self) -> str:
        spec = self._executor.spec
        return (
            f"<Model {spec.name!r} over {self.memory}, {self._state.value}, {self._engine.pool!r}>"
        )

    # What it is

    @property
    def name(self) -> str:
        """The model's name."""
        return self._executor.spec.name

    @property
    def version(self) -> str:
        """The version that was asked for; empty for the server's choice."""
        return self._executor.spec.version

    @property
    def memory(self) -> str:
        """Where its tensors are: ``"system"``, ``"cuda:N"`` or ``"wire"``."""
        if (device := self._executor.device) is not None:
            return f"cuda:{device.id}"
        return "system" if self._executor.uses_shm else "wire"

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """The inputs by name."""
        return MappingProxyType(dict(self._executor.spec.inputs))

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """The outputs by name."""
        return MappingProxyType(dict(self._executor.spec.outputs))

    @property
    def max_batch_size(self) -> int:
        """Most rows of one request; 0 for a model that does not batch."""
        return self._executor.spec.max_batch_size

    def statistics(self) -> PoolStatistics:
        """Return a picture of the slots as they are now."""
        return self._engine.pool.statistics()

    # Calls

    async def infer(
        self,
        inputs: Mapping[str, object],
        *,
        outputs: Sequence[str] | None = None,
        out: Mapping[str, Any] | None = None,
        timeout: float | None | UseDefault = USE_DEFAULT,
        queue_timeout: float | None = None,
        request_id: str = "",
        priority: int = 0,
        parameters: Mapping[str, Parameter] | None = None,
    ) -> InferResult:
        """Run the model once: inputs are copied in, outputs are copied out.

        A batch of more than ``max_batch_size`` rows is sent in parts over several slots
        and comes back in order.

        Args:
            inputs: a value for each input: an array of the model's datatype, anything with
                ``__dlpack__``, a list of such rows (each without the batch dimension), plain
                numbers or nested lists of them, ``str`` or ``bytes`` or arrays or lists of
                them for BYTES, a `Region.tensor`, or an adopted tensor. On a model in the
                memory of a GPU also tensors on any GPU, through ``__dlpack__`` or
                ``__cuda_array_interface__``, copied after the work that is queued on their
                producers' current streams when this coroutine first runs. Shapes are full,
                batch dimension included.
            outputs: names of the wanted outputs; all by default.
            out: what receives outputs, by name; of the output's datatype and shape: numpy
                arrays, or on a model in the memory of a GPU also tensors on a GPU. The result
                has these objects themselves.
            timeout: seconds for all of it: waiting for a slot, copying, the call. The
                model's by default, None for ever.
            queue_timeout: seconds the request may wait in the server's queue, the only
                timeout that the server obeys. The model's config must allow it.
            request_id: an id of the caller's, sent back by the server.
            priority: Triton's request priority, 0 for the model's default.
            parameters: request parameters for the model.

        Returns:
            The outputs, in arrays that the caller owns: numpy's, or `DeviceArray` on a model
            in the memory of a GPU (BYTES are always numpy's).

        Raises:
            InputError: refused before anything was sent.
            InferTimeout: the timeout passed. The server may still run the request.
            PoolExhausted: ``max_waiting`` callers wait already.
            PoolClosed: the model is closed.
            CapacityError: no memory for the slot, or an output did not fit; ``model_ran``
                tells which.
            CudaError: the GPU could not copy.
            ServerUnavailable: the server did not answer.
            InferenceError: the server answered with an error.

        Cancellation: safe. The caller is released at once; the server goes on, and the
        slot is not reused before it has answered. With ``out``, a copy that has begun is
        finished first, and none begins later.
        """
        self._check_open()
        limit = self._timeout if timeout is USE_DEFAULT else seconds(timeout)
        options = make_options(request_id, priority, queue_timeout, parameters)
        executor = self._executor
        was_refreshed = False
        clock = self._runtime.deadlines.limit(limit)
        try:
            with clock:
                while True:
                    spec, checker = executor.spec, executor.checker
                    try:
                        call = checker.recall(inputs, options) if outputs is None else None
                        if call is None:
                            check = partial(checker.check, inputs, outputs, options)
                            if is_heavy(inputs):
                                call = await outlive(self._runtime.submit(check))
                            else:
                                call = check()
                        if out is not None:
                            checker.direct(call, out)
                        if call.kind.is_oversized:
                            return await run_split(executor, call, slots=self._slots.most)
                        return await executor.run(call)
                    except InferenceError as error:
                        # Refused before it ran: maybe the model was reloaded with another
                        # signature.
                        is_refused = error.status() == "StatusCode.INVALID_ARGUMENT"
                        if was_refreshed or not is_refused or not await self._has_changed(spec):
                            raise
                        was_refreshed = True
        except TimeoutError as error:
            if isinstance(error, InferTimeout) or not clock.has_expired:
                raise
            raise InferTimeout(
                f"model {self.name!r}: no result within {limit:g} seconds; {self._engine.pool!r}. "
                "A request that was sent goes on at the server"
            ) from error

    async def refresh(self) -> None:
        """Fetch the model's metadata and config again, as after it was reloaded.

        Raises:
            ServerUnavailable, InferenceError: what the names say.
        """
        self._check_open()
        await self._has_changed(self._executor.spec)

    async def _has_changed(self, known: ModelSpec) -> bool:
        fresh = await self._runtime.model_spec(self.name, self.version)
        if fresh == known:
            return False
        self._executor.respecify(fresh)
        return True

    def lease(
        self,
        shapes: Mapping[str, Sequence[int]] | None = None,
        *,
        timeout: float | None | UseDefault = USE_DEFAULT,
    ) -> Lease:
        """Return a lease of one slot, to be used in an ``async with`` block.

        Args:
            shapes: full shapes of the inputs that are written in place, batch dimension
                included. By default those of ``Client.model(shapes=...)``, else what the
                metadata says, with ``max_batch_size`` rows. BYTES inputs are not leased,
                they are given to `Lease.infer`.
            timeout: seconds to wait for the slot; also the default of `Lease.infer`.

        Raises:
            InputError: a shape does not fit the model, or one is needed and not given.
            PoolClosed: the model is closed.
        """
        self._check_open()
        chosen = self._shapes if shapes is None and self._shapes is not None else None
        if chosen is None:
            chosen = self._executor.spec.lease_shapes(shapes or {})
        limit = self._timeout if timeout is USE_DEFAULT else seconds(timeout)
        return Lease(self._executor, chosen, timeout=limit, place=calling_place())

    # Opening and closing

    async def fill(self) -> None:
        """Size and register slots for the shapes that were given, all that are always kept."""
        if self._shapes is None or not self._executor.uses_shm:
            return
        byte_size = self._executor.planner.lease_layout(self._shapes).byte_size
        slots = [await self._engine.acquire() for _ in range(self._slots.fewest)]
        try:
            await gather_all([self._engine.fit(slot, byte_size) for slot in slots])
        finally:
            for slot in slots:
                self._engine.unhold(slot)

    async def aclose(self, timeout: float | None | UseDefault = USE_DEFAULT) -> None:
        """Refuse new calls, wait for the running ones, and give the memory back.

        Args:
            timeout: seconds to wait for calls that the server has not answered; the
                model's by default.

        Arrays that outlived their lease keep their bytes. Idempotent.
        """
        self._state = ModelState.CLOSED
        limit = self._timeout if timeout is USE_DEFAULT else seconds(timeout)
        await self._engine.aclose(limit)
        self._closed_hook(self)

    def when_closed(self, hook: Callable[[Model], object]) -> None:
        """Have ``hook`` called once the model is closed."""
        self._closed_hook = hook

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def _check_open(self) -> None:
        self._runtime.check_usable()
        if self._state is not ModelState.OPEN:
            raise PoolClosed(f"model {self.name!r} is closed; open it again with Client.model")
