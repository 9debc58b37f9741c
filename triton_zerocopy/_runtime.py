"""What everything that belongs to one client shares: loop, transport, threads, memory."""

from __future__ import annotations

import asyncio
import enum
import os
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from ._copying import THREADS, Job
from ._cuda.device import Device
from ._cuda.devices import open_device
from ._cuda.results import DeviceResults
from ._deadlines import Deadlines
from ._endings import public_error
from ._errors import ClientClosed, ForkedClientError, WrongLoopError
from ._outliving import gather_all, outlive
from ._reaper import Reaper
from ._recycling import Recycler
from ._region_keeper import RegionKeeper
from ._regions.budget import Budget
from ._registration import LAST_WORDS
from ._settings import Settings
from ._specs import ModelSpec
from ._transports.base import ServerError, ServerInfo, Transport
from ._transports.grpc import GrpcTransport
from ._transports.http import HttpTransport

Result = TypeVar("Result")

ON_LOOP_BYTES: Final = 10 << 20
"""Copies up to this many bytes stay on the loop: at some 10 GB/s they take less than a
millisecond, while handing one to a thread and back costs 0.1 to 0.2 ms."""


class RuntimeState(enum.Enum):
    """Life of a client; it never goes back."""

    NEW = "not used yet"
    OPEN = "open"
    CLOSED = "closed"


class Runtime:
    """The shared part of a client. It binds to the event loop of its first use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.budget = Budget(settings.max_shm_bytes)
        self.recycler = Recycler()
        self.reaper = Reaper(self)
        self.regions = RegionKeeper(self, self.reaper.start)
        self.state = RuntimeState.NEW
        self.server: ServerInfo | None = None
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: Transport | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._devices: dict[int, Device] = {}
        self._results: dict[int, DeviceResults] = {}

    # Use

    def check_usable(self) -> None:
        """Bind to the running loop at first; raise if the client cannot be used here.

        Raises:
            ClientClosed, ForkedClientError, WrongLoopError: what the names say.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is self._loop and self.state is RuntimeState.OPEN:
            return  # no loop runs on in a forked child
        if os.getpid() != self._pid:
            raise ForkedClientError(
                "this client was made in the parent process; make a new one after fork"
            )
        if loop is None:
            raise WrongLoopError("a client is used inside a running asyncio event loop")
        if self.state is RuntimeState.OPEN:
            raise WrongLoopError(
                "this client belongs to another event loop; make one client for each loop"
            )
        if self.state is RuntimeState.CLOSED:
            raise ClientClosed("this client is closed; make a new one")
        self._loop = loop
        self.deadlines = Deadlines(loop)
        self.state = RuntimeState.OPEN

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop this client belongs to."""
        assert self._loop is not None
        return self._loop

    @property
    def transport(self) -> Transport:
        """The way to the server; it is made at the first use."""
        if self._transport is None:
            settings = self.settings
            kind = HttpTransport if settings.target.is_http else GrpcTransport
            self._transport = kind(
                settings.target,
                ssl=settings.ssl,
                headers=settings.headers,
                admin_headers=settings.admin_headers,
            )
        return self._transport

    # Questions to the server

    async def server_info(self) -> ServerInfo:
        """Return what the server says of itself.

        Raises:
            ServerUnavailable, InferenceError: what the names say.
        """
        try:
            self.server = await self.transport.server_info(timeout=self.settings.timeout)
        except ServerError as error:
            raise public_error(error) from error
        return self.server

    async def model_spec(self, name: str, version: str) -> ModelSpec:
        """Return what a model takes and gives.

        Raises:
            InferenceError: the server does not know the model, or it is not ready.
            ServerUnavailable: the server did not answer.
        """
        try:
            return await self.transport.model_spec(name, version, timeout=self.settings.timeout)
        except ServerError as error:
            raise public_error(error, model=name) from error

    # Work off the loop

    def submit(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        """Run blocking work in a thread. Cancelling the future does not stop the thread."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="triton_zerocopy")
        return self.loop.run_in_executor(self._threads, work)

    def submit_all(self, jobs: Sequence[Job]) -> asyncio.Future[Any]:
        """The same for what can be done at the same time; done when all of it is."""
        return self.spawn(gather_all([self.submit(job) for job in jobs]))

    async def run_copy(self, copy: Callable[[], Any], byte_size: int) -> Any:
        """Run a copy, in a thread if it is large."""
        if byte_size <= ON_LOOP_BYTES:
            return copy()
        return await outlive(self.submit(copy))

    def spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Start a task that no caller can cancel; it is awaited when the client closes."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def protect(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Wait for work that goes on when the caller is cancelled."""
        return await outlive(self.spawn(work))

    # Devices

    async def open_device(self, device_id: int) -> Device:
        """Return a GPU of this process, for as long as the client is open.

        Raises:
            CudaError: it cannot be used; the message says why.
        """
        device = self._devices.get(device_id)
        if device is None:
            device = await self.protect(self._find_device(device_id))
        return device

    async def any_device(self) -> Device:
        """Return a GPU that is open already, else the first one."""
        return await self.open_device(next(iter(self._devices), 0))

    async def _find_device(self, device_id: int) -> Device:
        found = await self.submit(lambda: open_device(device_id))
        device = self._devices.setdefault(device_id, found)
        if device_id in self._results:
            found.let_go()  # two asked at a time
        else:
            self._results[device_id] = DeviceResults(found)
        return device

    def results_on(self, device: Device) -> DeviceResults:
        """Return what makes results on a GPU that was opened."""
        return self._results[device.id]

    # Closing

    async def aclose(self, deadline: float | None) -> None:
        """Finish the background work, give up all regions, close the channel.

        Args:
            deadline: loop time until which a server that still uses memory is waited for;
                then the memory is unlinked without proof.
        """
        self.state = RuntimeState.CLOSED
        await self.reaper.aclose()
        while self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=self._left(deadline))
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        await self.regions.aclose(self._left(deadline))
        self.deadlines.close()
        self.recycler.clear()
        for results in self._results.values():
            results.close()
        for device in self._devices.values():
            device.let_go()
        if self._transport is not None:
            await self._transport.aclose()
        if self._threads is not None:
            # Nothing of ours runs in them any more, so this does not wait.
            self._threads.shutdown(wait=True)

    def _left(self, deadline: float | None) -> float | None:
        return None if deadline is None else max(LAST_WORDS, deadline - self.loop.time())
