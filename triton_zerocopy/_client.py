"""`Client`: the owner of everything; opens, hands out, closes in reverse order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ._adoption import AdoptedTensor, adopt_tensor, find_device
from ._cuda.foreign import is_device_tensor
from ._direct import infer_direct
from ._errors import InferTimeout, InputError, ServerUnavailable
from ._memory import MemoryChoice
from ._model import Model
from ._opening import Opening
from ._options import USE_DEFAULT, UseDefault, make_options, seconds
from ._own_regions import OwnRegions
from ._places import calling_place
from ._plain_clients import grpc_client, http_client
from ._reaper import Reclaimed
from ._regions.base import Region, RegionTensor
from ._results import InferResult
from ._retry import RetryPolicy
from ._runtime import Runtime, RuntimeState
from ._server_versions import quirks_of
from ._settings import check_memory, make_settings
from ._slots import SlotRange
from ._transports.base import Parameter, ServerError
from ._urls import SslOptions

if TYPE_CHECKING:
    from tritonclient.grpc.aio import InferenceServerClient
    from tritonclient.http.aio import InferenceServerClient as HttpInferenceServerClient

_READY_POLL = 0.05  # seconds between two questions whether the server is ready


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """A picture of a client.

    Attributes:
        bytes_reserved: shared memory held now, in bytes.
        max_shm_bytes: the limit on it, None for none.
        models: how many models are open.
        regions: how many regions of the caller's are open.
        server_version: Triton's version, empty before it was asked. It is when memory is to be
            shared.
        server_quirks: what servers of that version do with shared memory, and what this client
            does about it, each in a line.
    """

    bytes_reserved: int
    max_shm_bytes: int | None
    models: int
    regions: int
    server_version: str = ""
    server_quirks: tuple[str, ...] = ()


class Client:
    """An asyncio client of one Triton server, and the owner of all memory it shares.

    Making one does no I/O and needs no event loop; it binds to the loop of its first use.

    Args:
        url: ``"host:port"`` of the server's gRPC endpoint, or ``grpc://``, ``grpcs://``
            (TLS), ``unix:/path``; ``http://``, ``https://``, ``http+unix:/path`` for its HTTP
            endpoint, over which a call takes much less time.
        memory: where tensors are: ``"system"`` (POSIX shared memory), ``"wire"`` (inside
            the messages), ``"cuda:N"`` (the memory of GPU N of this process), or ``"auto"``:
            system if the server can see this host's shared memory, else wire, said once in
            the log. A named memory never falls back.
        headers: sent with every call.
        admin_headers: sent with calls about shared memory besides ``headers``, for servers
            that restrict them.
        ssl: True or `SslOptions` for TLS; implied by ``grpcs://`` and ``https://``.
        timeout: seconds for one call where nothing else is said; None for ever.
        max_shm_bytes: most bytes of shared memory, that of GPUs included; beyond it
            CapacityError.
        shm_mode: file mode of shared memory. Whoever may read it sees the tensors.
        shm_gid: group of shared memory, for a server under another user.
        server_devices: which GPU of the server is which of this process, where
            CUDA_VISIBLE_DEVICES or containers number them differently: a mapping from
            ordinals here to ordinals there, or the UUIDs of the server's GPUs in its order
            (``"GPU-..."``, as in its CUDA_VISIBLE_DEVICES). By default the numbers agree.
        poison: fill outputs with a pattern before each call, so that a backend that writes
            nothing shows. For debugging; it costs a write per call.
        retry: whether calls that found no server are sent again; by default they are not.

    Raises:
        InputError: one of them cannot be.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        memory: str = "auto",
        headers: Mapping[str, str] | None = None,
        admin_headers: Mapping[str, str] | None = None,
        ssl: bool | SslOptions | None = None,
        timeout: float | None = 60.0,
        max_shm_bytes: int | None = None,
        shm_mode: int = 0o600,
        shm_gid: int | None = None,
        server_devices: Mapping[int, int] | Sequence[str] | None = None,
        poison: bool = False,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._runtime = Runtime(
            make_settings(
                url=url,
                memory=memory,
                headers=headers,
                admin_headers=admin_headers,
                ssl=ssl,
                timeout=timeout,
                max_shm_bytes=max_shm_bytes,
                shm_mode=shm_mode,
                shm_gid=shm_gid,
                server_devices=server_devices,
                poison=poison,
                retry=retry,
                place=calling_place(),
            )
        )
        self._memory = MemoryChoice(self._runtime)
        self._models: set[Model] = set()
        self._regions = OwnRegions(self._runtime)
        self._triton: InferenceServerClient | HttpInferenceServerClient | None = None
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Client of {self._runtime.settings.url}, {self._runtime.state.value}>"

    # The server

    async def is_ready(self) -> bool:
        """Tell whether the server answers and is ready. Cancellation: safe."""
        self._runtime.check_usable()
        try:
            return await self._runtime.transport.is_ready(timeout=self._runtime.settings.timeout)
        except ServerError:
            return False

    async def wait_ready(self, timeout: float | None | UseDefault = USE_DEFAULT) -> None:
        """Wait until the server is ready.

        Args:
            timeout: seconds to wait; the client's by default, None for ever.

        Raises:
            ServerUnavailable: it was not ready in time.

        Cancellation: safe.
        """
        limit = self._limit(timeout)
        try:
            async with asyncio.timeout(limit):
                while not await self.is_ready():
                    await asyncio.sleep(_READY_POLL)
        except TimeoutError as error:
            raise ServerUnavailable(
                f"no server at {self._runtime.settings.url} was ready within {limit} seconds; "
                "check that it runs and that the url is its gRPC port, or http:// and its HTTP port"
            ) from error

    @property
    def triton(self) -> InferenceServerClient | HttpInferenceServerClient:
        """The tritonclient aio client of the same server, for all that is not wrapped here.

        It is that of ``tritonclient.grpc.aio``, or of ``tritonclient.http.aio`` for an http
        url. It is made at the first use, without the headers, and closed with this client. Its
        own calls do not know about slots: do not infer from memory of this client with it.

        Raises:
            InputError: the url is ``http+unix:``, which tritonclient does not speak.
        """
        self._runtime.check_usable()
        if self._triton is None:
            settings = self._runtime.settings
            make = http_client if settings.target.is_http else grpc_client
            self._triton = make(settings)
        return self._triton

    # Models

    def model(
        self,
        name: str,
        version: str = "",
        *,
        memory: str | None = None,
        slots: int | tuple[int, int] = 4,
        max_waiting: int | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        output_bytes: Mapping[str, int] | None = None,
        repeatable: bool = False,
        timeout: float | None | UseDefault = USE_DEFAULT,
    ) -> Opening[Model]:
        """Open a model: ``await`` it, or use it in ``async with``.

        Args:
            name: the model's name.
            version: its version; empty for the server's choice.
            memory: as for `Client`; the client's by default.
            slots: how many requests may be under way at a time; or the fewest and the most
                as a pair. Above the fewest, slots are made when callers would have to wait,
                and given up when nobody has used them for half a minute; without memory for
                another one, callers wait for one that there is. Each slot is a region of
                its own, as large as the largest request it carried.
            max_waiting: how many callers may wait for a slot; None for any number.
            shapes: full input shapes, for which all slots, of a pair the fewest, are sized
                and registered before the model is handed out. Otherwise the first uses size them.
            output_bytes: room in bytes for outputs whose size the metadata does not tell.
                Otherwise they come inline until it is known.
            repeatable: True if the model may run a second time when an output did not fit.
            timeout: seconds for one call; the client's by default, None for ever.

        Raises (when awaited):
            InputError: a decoupled model, or an argument that does not fit the model.
            InferenceError: the server does not know the model, or it is not ready.
            RegistrationError: the server refuses the named memory.
            CudaError: this process cannot use the named GPU.
            CapacityError: there is no memory for the slots of ``shapes``.
            ServerUnavailable: the server did not answer.

        Cancellation: safe.
        """
        slot_range = SlotRange.parse(slots)
        if max_waiting is not None and max_waiting < 0:
            raise InputError(f"max_waiting is at least 0, got {max_waiting}")
        wanted = check_memory(memory or self._runtime.settings.memory)
        limit = self._limit(timeout)

        async def opened() -> Model:
            self._runtime.check_usable()
            spec = await self._runtime.model_spec(name, version)
            if spec.is_decoupled:
                raise InputError(
                    f"model {name!r} is decoupled (it may answer many times); that needs "
                    "streaming, which is not built in yet. Use client.triton.stream_infer over gRPC"
                )
            device = await self._memory.device(wanted)
            model = Model(
                self._runtime,
                spec,
                uses_shm=device is not None or await self._memory.uses_shm(wanted),
                device=device,
                slots=slot_range,
                max_waiting=max_waiting,
                shapes=shapes,
                output_bytes=output_bytes or {},
                is_repeatable=repeatable,
                timeout=limit,
            )
            self._models.add(model)
            model.when_closed(self._models.discard)
            try:
                await model.fill()
            except BaseException:
                await self._runtime.protect(model.aclose())
                raise
            return model

        return Opening(opened)

    # The low level

    def region(self, byte_size: int, *, memory: str = "system") -> Opening[Region]:
        """Make a region and register it: ``await`` it, or use it in ``async with``.

        Args:
            byte_size: bytes in it.
            memory: ``"system"`` or ``"cuda:N"``.

        Raises (when awaited):
            CapacityError, RegistrationError, CudaError, ServerUnavailable: what the names say.

        Cancellation: safe; what was made by then is given back.
        """
        if check_memory(memory) in ("auto", "wire"):
            raise InputError(f"a region is in memory 'system' or 'cuda:N', not {memory!r}")
        if isinstance(byte_size, bool) or not isinstance(byte_size, int) or byte_size < 1:
            raise InputError(f"byte_size is a positive number of bytes, got {byte_size!r}")
        place = calling_place()

        async def opened() -> Region:
            self._runtime.check_usable()
            device = await self._memory.device(memory)
            if device is None:
                await self._memory.uses_shm("system")
            regions = self._runtime.regions
            return await self._regions.hand_out(
                regions.new_region(byte_size, device, is_public=True, place=place)
            )

        return Opening(opened)

    def adopt(self, tensor: object) -> Opening[AdoptedTensor]:
        """Let the server use a tensor of another library where it is, without a copy.

        ``async with client.adopt(tensor) as ref:`` registers the memory that the tensor lies
        in; ``ref`` is then an input of `Model.infer`, `Lease.infer` or `infer`, or a place for
        an output of `infer`. The server can reach all of the allocation that the tensor is a
        part of, with a caching allocator also what other tensors have there.

        The tensor is held until the server has let go of it. What is queued on its producer's
        current stream is waited for by each call that uses it.

        Args:
            tensor: contiguous, on a GPU, with ``__dlpack__`` or ``__cuda_array_interface__``,
                in memory made by cudaMalloc.

        Raises (when awaited):
            InputError: it is not on a GPU, not contiguous, or empty.
            CudaError: its memory cannot be shared with another process; the message says why
                and what to do instead.
            RegistrationError, ServerUnavailable: what the names say.

        Cancellation: safe; what was registered by then is given back.
        """
        if not is_device_tensor(tensor):
            raise InputError(
                f"Client.adopt: a {type(tensor).__name__} is not in the memory of a GPU; only "
                "such memory is adopted, pass other tensors to infer"
            )
        place = calling_place()

        async def opened() -> AdoptedTensor:
            self._runtime.check_usable()
            device = await self._memory.device(f"cuda:{await find_device(self._runtime, tensor)}")
            assert device is not None
            ref = await adopt_tensor(self._runtime, device, tensor, place)
            await self._regions.hand_out(self._runtime.regions.registered(ref.region))
            return ref

        return Opening(opened)

    async def infer(
        self,
        model_name: str,
        inputs: Mapping[str, object],
        *,
        outputs: Mapping[str, RegionTensor] | Sequence[str] | None = None,
        model_version: str = "",
        timeout: float | None | UseDefault = USE_DEFAULT,
        queue_timeout: float | None = None,
        request_id: str = "",
        priority: int = 0,
        parameters: Mapping[str, Parameter] | None = None,
    ) -> InferResult:
        """Send one request from and into the caller's own regions, without a slot.

        Args:
            model_name: the model's name.
            inputs: by name, tensors in regions (`Region.tensor`) or numpy arrays, which go
                inside the message.
            outputs: places by name (`Region.tensor`), or names of outputs that come back
                inside the message; all of them by default.
            model_version: empty for the server's choice.
            timeout: seconds; the client's by default, None for ever.
            queue_timeout: seconds the request may wait in the server's queue.
            request_id: an id of the caller's, sent back by the server.
            priority: Triton's request priority, 0 for the model's default.
            parameters: request parameters for the model.

        Returns:
            Outputs in regions as views of them, others as arrays of the caller's.

        Raises:
            InputError, InferTimeout, ServerUnavailable, InferenceError: as `Model.infer`.
            CapacityError: an output did not fit its place; the model has run.
            RegionBusy: a call that used one of the regions ended ambiguously.
            RegionClosed: one of the regions is closed.

        Cancellation: ends the waiting; the regions count the call until it is answered.
        """
        self._runtime.check_usable()
        limit = self._limit(timeout)
        options = make_options(request_id, priority, queue_timeout, parameters)
        try:
            with self._runtime.deadlines.limit(limit):
                return await infer_direct(
                    self._runtime, model_name, model_version, inputs, outputs, options
                )
        except TimeoutError as error:
            raise InferTimeout(
                f"model {model_name!r}: no answer within {limit} seconds; the server may still use "
                "the regions, which wait for it when they are closed"
            ) from error

    def statistics(self) -> ClientStatistics:
        """Return a picture of the client as it is now."""
        server = self._runtime.server
        return ClientStatistics(
            bytes_reserved=self._runtime.budget.bytes_reserved,
            max_shm_bytes=self._runtime.budget.limit,
            models=len(self._models),
            regions=len(self._regions),
            server_version="" if server is None else server.version,
            server_quirks=() if server is None else tuple(map(str, quirks_of(server))),
        )

    # Closing

    async def reap(self, timeout: float | None | UseDefault = USE_DEFAULT) -> Reclaimed:
        """Give back what clients of this server left behind that are dead.

        Those are clients whose process was killed, or that could not finish closing. Each
        client does this by itself, in the background, when it first uses shared memory, so
        there is rarely a reason to call it.

        It removes files in /dev/shm of dead clients of any server, and unregisters their
        regions at this one. What living clients have is not touched.

        Args:
            timeout: seconds to wait for regions that requests of dead clients still use; the
                client's by default, None for ever. Regions of a client that used ensembles
                rest for 5 seconds first.

        Raises:
            ServerUnavailable: the server did not answer.
            RegistrationError: it does not tell which regions it knows.
            ClientClosed: the client was closed meanwhile.

        Cancellation: ends it. What was not given back by then is left to the next client.
        """
        self._runtime.check_usable()
        return await self._runtime.reaper.reap(self._limit(timeout))

    async def aclose(self, timeout: float | None | UseDefault = USE_DEFAULT) -> None:
        """Close models and regions, wait for what is running, and disconnect.

        Args:
            timeout: seconds to wait for calls that the server has not answered; the
                client's by default. What runs longer is left to the server, with a
                warning.

        Idempotent. Cancellation: the closing goes on by itself.
        """
        if self._closing is None:
            if self._runtime.state is RuntimeState.NEW:
                self._runtime.state = RuntimeState.CLOSED
                return
            if self._runtime.state is RuntimeState.CLOSED:
                return
            self._runtime.check_usable()
            limit = self._limit(timeout)
            self._closing = asyncio.get_running_loop().create_task(self._close(limit))
        await asyncio.shield(self._closing)

    async def _close(self, limit: float | None) -> None:
        deadline = None if limit is None else asyncio.get_running_loop().time() + limit
        ends: list[Awaitable[None]] = [model.aclose(limit) for model in list(self._models)]
        await asyncio.gather(*ends, *self._regions.ends(limit), return_exceptions=True)
        if self._triton is not None:
            await self._triton.close()
        await self._runtime.aclose(deadline)

    async def __aenter__(self) -> Self:
        self._runtime.check_usable()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def _limit(self, timeout: float | None | UseDefault) -> float | None:
        return (
            self._runtime.settings.timeout if isinstance(timeout, UseDefault) else seconds(timeout)
        )
