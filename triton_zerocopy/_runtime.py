"""What everything that belongs to one client shares: loop, transport, threads, memory."""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import secrets
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from ._deadlines import Deadline, Deadlines
from ._endings import public_error
from ._errors import ClientClosed, ForkedClientError, WrongLoopError
from ._recycling import Recycler
from ._regions.base import Region
from ._regions.budget import Budget
from ._regions.system import SystemRegion, new_name
from ._registration import CALL_TIMEOUT, register, unregister
from ._settings import Settings
from ._specs import ModelSpec
from ._transports.base import ServerError, ServerInfo, Transport
from ._transports.grpc import GrpcTransport

logger = logging.getLogger("triton_zerocopy")

Result = TypeVar("Result")

ON_LOOP_BYTES: Final = 10 << 20
"""Copies up to this many bytes stay on the loop: at some 10 GB/s they take less than a
millisecond, while handing one to a thread and back costs 0.1 to 0.2 ms."""

_THREADS: Final = max(1, min(4, (os.cpu_count() or 2) - 1))
"""Threads for copies and the file system: one core is left to the event loop."""

FENCE_TIMEOUT: Final = 30.0  # seconds to wait until a server lets go of a region


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
        self.owner_id = secrets.token_hex(8)
        self.state = RuntimeState.NEW
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._transport: Transport | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._kept: list[Region] = []
        self._kept_until = 0.0

    # Use

    def check_usable(self) -> None:
        """Bind to the running loop at first; raise if the client cannot be used here.

        Raises:
            ClientClosed, ForkedClientError, WrongLoopError: what the names say.
        """
        if os.getpid() != self._pid:
            raise ForkedClientError(
                "this client was made in the parent process; make a new one after fork"
            )
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise WrongLoopError("a client is used inside a running asyncio event loop") from None
        if self.state is RuntimeState.OPEN:
            if loop is not self._loop:
                raise WrongLoopError(
                    "this client belongs to another event loop; make one client for each loop"
                )
        elif self.state is RuntimeState.CLOSED:
            raise ClientClosed("this client is closed; make a new one")
        else:
            self._loop = loop
            self._deadlines = Deadlines(loop)
            self.state = RuntimeState.OPEN

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop this client belongs to."""
        assert self._loop is not None
        return self._loop

    @property
    def transport(self) -> Transport:
        """The way to the server; the channel is made at the first use."""
        if self._transport is None:
            settings = self.settings
            self._transport = GrpcTransport(
                settings.target,
                ssl=settings.ssl,
                headers=settings.headers,
                admin_headers=settings.admin_headers,
            )
        return self._transport

    def limit(self, seconds: float | None) -> Deadline:
        """Return a timeout for the calling task, to be used in ``with``."""
        return self._deadlines.limit(seconds)

    # Questions to the server

    async def server_info(self) -> ServerInfo:
        """Return what the server says of itself.

        Raises:
            ServerUnavailable, InferenceError: what the names say.
        """
        try:
            return await self.transport.server_info(timeout=self.settings.timeout)
        except ServerError as error:
            raise public_error(error) from error

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
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="triton_zerocopy")
        return self.loop.run_in_executor(self._threads, work)

    async def run_copy(self, copy: Callable[[], Any], byte_size: int) -> Any:
        """Run a copy, in a thread if it is large."""
        if byte_size <= ON_LOOP_BYTES:
            return copy()
        return await asyncio.shield(self.submit(copy))

    def spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Start a task that no caller can cancel; it is awaited when the client closes."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def protect(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Wait for work that goes on when the caller is cancelled."""
        return await asyncio.shield(self.spawn(work))

    # Regions

    async def new_region(self, byte_size: int, *, is_public: bool = False) -> SystemRegion:
        """Make a region and register it. After an error neither is left."""
        settings = self.settings
        region = await self.submit(
            lambda: SystemRegion(
                byte_size,
                owner_id=self.owner_id,
                budget=self.budget,
                mode=settings.shm_mode,
                gid=settings.shm_gid,
                host=self if is_public else None,
            )
        )
        try:
            await register(self.transport, region)
        except BaseException:
            await self.submit(region.free)
            raise
        return region

    async def make_known(self, region: Region) -> None:
        """Register a region again, under a new name: a name is never used twice."""
        assert isinstance(region, SystemRegion)
        region.name = new_name(self.owner_id)
        await register(self.transport, region)

    async def forget(self, region: Region) -> None:
        """Unregister a region and wait until the server let go of it."""
        await unregister(self.transport, region.name, timeout=FENCE_TIMEOUT)

    async def dispose(self, region: Region) -> None:
        """Unregister a region, then free it."""
        try:
            await self.forget(region)
        finally:
            await self.submit(region.free)

    async def abandon(self, region: Region) -> None:
        """Give up a region that a call still uses: the server may forget it by itself.

        Servers from 2.53 on let go when the call ends; earlier ones keep it registered.
        """
        try:
            await self.transport.unregister_system(region.name, timeout=CALL_TIMEOUT)
        except ServerError as error:
            logger.warning("a region stays registered at the server (%s)", error.code)
        region.abandon()
        await self.submit(region.free)

    def keep(self, region: Region, *, until: float) -> None:
        """Put a region aside until the client closes, and until then at the earliest.

        Args:
            region: it is not used any more.
            until: loop time before which it must not be unregistered.
        """
        self._kept.append(region)
        self._kept_until = max(self._kept_until, until)

    # Closing

    async def aclose(self, timeout: float | None) -> None:
        """Finish the background work, give up the kept regions, close the channel.

        Args:
            timeout: seconds for background work that waits for the server to let go of
                memory; then the memory is unlinked without that.
        """
        self.state = RuntimeState.CLOSED
        deadline = None if timeout is None else self.loop.time() + timeout
        while self._tasks:
            left = None if deadline is None else max(0.0, deadline - self.loop.time())
            _, late = await asyncio.wait(set(self._tasks), timeout=left)
            for task in late:
                logger.warning("a region was closed before the server had let go of it")
                task.cancel()
            if late:
                await asyncio.wait(late)
        if self._kept:
            await asyncio.sleep(max(0.0, self._kept_until - self.loop.time()))
            ends = [self.dispose(region) for region in self._kept]
            await asyncio.gather(*ends, return_exceptions=True)
            self._kept.clear()
        self._deadlines.close()
        self.recycler.clear()
        if self._transport is not None:
            await self._transport.aclose()
        if self._threads is not None:
            # Nothing of ours runs in them any more, so this does not wait.
            self._threads.shutdown(wait=True)
