"""`Device`: one GPU as this process uses it, through one thread of the library's own.

All CUDA calls of the library are made in this thread, which sets its device once. So the
caller's threads and their current device are never touched, and waiting for the GPU blocks
neither them nor the event loop: what is queued is followed by an event, and the thread looks
at its events and at new jobs in turn.

The thread lives as long as anyone uses the device: a client, or memory that is still alive.

What holds after an error:

- a job that raised has told whoever waits for it; the thread goes on;
- work that was queued before the error is waited for, before its memory is used again;
- a stream that another library destroyed is not waited for by name: all of the GPU is.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Final, TypeVar

from .._errors import CudaError
from . import cudart
from .countdown import Countdown, Finish
from .cudart import DeviceFacts
from .errors import cuda_error
from .staging import Staging

logger = logging.getLogger("triton_zerocopy")

Result = TypeVar("Result")
_OWN_STREAMS: Final = 4
_GUEST_STREAMS: Final = 28
"""What waits for others' work goes on streams apart, in turn: a producer that takes long holds
up its own call, and of the rest only those whose producer got the same stream."""

_SPINS: Final = 20
_SHORTEST: Final = 20e-6  # seconds between two looks at the GPU
_LONGEST: Final = 500e-6
_EXIT_PATIENCE: Final = 2.0  # seconds


class Device:
    """A GPU, made by `open_device`."""

    def __init__(self, device_id: int) -> None:
        self.id = device_id
        self.staging = Staging(self)
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._pending: list[tuple[int, Finish]] = []
        self._spare_events: list[int] = []
        self._streams: list[int] = []
        self._turn = 0
        self._users = 0
        self._pinned: set[object] = set()
        self.is_stopped = False
        self._started: Future[DeviceFacts] = Future()
        self._thread = threading.Thread(
            target=self._run, name=f"triton_zerocopy cuda:{device_id}", daemon=True
        )

    def __repr__(self) -> str:
        return f"<Device cuda:{self.id}>"

    @property
    def facts(self) -> DeviceFacts:
        """What CUDA says of it. Blocks until the thread has started."""
        return self._started.result()

    # From any thread

    def post(self, job: Callable[[], None]) -> None:
        """Have the thread run a job. Safe anywhere, also while objects are collected."""
        self._jobs.put(job)

    def begin(self, job: Callable[[Finish], None]) -> asyncio.Future[None]:
        """Start work on the GPU; the future is done when the job calls ``finish``.

        Cancelling the future changes nothing for the work.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def finish(error: BaseException | None) -> None:
            try:
                loop.call_soon_threadsafe(_resolve, future, error)
            except RuntimeError:
                pass  # the loop is closed, nobody waits

        def run() -> None:
            try:
                job(finish)
            except BaseException as error:  # noqa: BLE001 # it is the waiter's
                finish(error)

        if self.is_stopped:
            future.set_exception(CudaError(f"{self!r} is not in use any more"))
        else:
            self.post(run)
        return future

    async def ask(self, job: Callable[[], Result]) -> Result:
        """Run a job in the thread and return what it returned.

        Cancellation: ends the waiting, not the job.
        """
        found: list[Result] = []

        def run(finish: Finish) -> None:
            found.append(job())
            finish(None)

        await self.begin(run)
        return found[0]

    def settle(self, streams: Iterable[int]) -> asyncio.Future[None]:
        """Return a future that is done when all that is queued on these streams is."""
        handles = frozenset(streams)
        return self.begin(lambda finish: self.when_settled(handles, finish))

    def let_go(self) -> None:
        """One user less."""
        self.post(lambda: self.count_users(-1))

    # In the thread

    def own_stream(self) -> int:
        """Return a stream for work that waits for nobody else's."""
        self._turn += 1
        return self._streams[self._turn % _OWN_STREAMS]

    def guest_stream(self) -> int:
        """Return a stream for work that waits for others'. From any thread."""
        self._turn += 1
        return self._streams[_OWN_STREAMS + self._turn % _GUEST_STREAMS]

    def when_reached(self, stream: int, finish: Finish) -> None:
        """Have ``finish`` called when all that is queued on a stream by now is done."""
        event = self._spare_events.pop() if self._spare_events else cudart.make_event()
        try:
            cudart.record(event, stream)
        except BaseException:
            self._spare_events.append(event)
            raise
        self._pending.append((event, finish))

    def when_settled(self, streams: Iterable[int], finish: Finish) -> None:
        """The same for several streams, which may be others' and gone by now."""
        count = Countdown(finish)
        for stream in streams:
            count.more()
            try:
                if stream == cudart.PER_THREAD_STREAM:
                    cudart.synchronize_device()  # it is not known whose
                    count.done(None)
                else:
                    self.when_reached(stream, count.done)
            except CudaError:
                # Destroyed, with its work still going on: wait for everything.
                try:
                    cudart.synchronize_device()
                except CudaError as error:
                    count.done(error)
                else:
                    count.done(None)
        count.close()

    def order(self, stream: int, after: Iterable[int]) -> None:
        """Have what is queued on ``stream`` from now on wait for what is on others."""
        for other in after:
            if other == stream:
                continue
            if other == cudart.PER_THREAD_STREAM:
                cudart.synchronize_device()
                continue
            event = self._spare_events.pop() if self._spare_events else cudart.make_event()
            try:
                cudart.record(event, other)
                cudart.wait_for(stream, event)
            except CudaError:
                cudart.synchronize_device()
            finally:
                # A stream that waits for an event waits for that record of it.
                self._spare_events.append(event)

    def count_users(self, change: int) -> None:
        """Count who needs the device; without users its thread ends."""
        with _lock:
            self._users += change

    def pin(self, memory: object) -> None:
        """Keep memory alive although nobody may refer to it: a server has it mapped."""
        self._pinned.add(memory)

    def unpin(self, memory: object) -> None:
        """No server has it mapped any more."""
        self._pinned.discard(memory)

    # The thread

    def start(self) -> None:
        """Start the thread. Blocks until CUDA is initialised. Raises CudaError."""
        _running.add(self)
        self._thread.start()
        self._started.result()

    def _run(self) -> None:
        try:
            self._work()
        finally:
            _running.discard(self)

    def _work(self) -> None:
        try:
            cudart.set_device(self.id)
            facts = cudart.device_facts(self.id)
            if facts.is_integrated:
                raise cuda_error(
                    "cudaErrorNotSupported",
                    f"{facts.name} shares the host's memory and has no CUDA IPC",
                    801,
                    f"memory='cuda:{self.id}'",
                )
            count = _OWN_STREAMS + _GUEST_STREAMS
            self._streams = [cudart.make_stream() for _ in range(count)]
        except BaseException as error:  # noqa: BLE001 # raised where the device is opened
            self._forget()
            self._started.set_exception(error)
            return
        self._started.set_result(facts)
        while (job := self._next_job()) is not None:
            self._guard(job)
            del job  # what it refers to may be the last user

    def _next_job(self) -> Callable[[], None] | None:
        looks, pause = 0, _SHORTEST
        while self._pending:
            if self._look():
                looks, pause = 0, _SHORTEST
            try:
                if looks < _SPINS:
                    return self._jobs.get_nowait()
                return self._jobs.get(timeout=pause)
            except queue.Empty:
                if looks < _SPINS:
                    looks += 1
                else:
                    pause = min(_LONGEST, 2 * pause)
        if not self._users and self._jobs.empty() and self._retire():
            return None
        return self._jobs.get()

    def _look(self) -> bool:
        """Finish what the GPU has done; tell whether there was anything."""
        pending, self._pending = self._pending, []
        for event, finish in pending:
            problem: BaseException | None = None
            try:
                if not cudart.has_happened(event):
                    self._pending.append((event, finish))
                    continue
            except CudaError as error:
                problem = error
            self._spare_events.append(event)
            self._guard(partial(finish, problem))
        return len(self._pending) < len(pending)

    def _guard(self, work: Callable[[], None]) -> None:
        """Run something that nobody waits for; the thread goes on whatever happens."""
        try:
            work()
        except Exception:
            logger.exception("a job of %r failed", self)

    def _retire(self) -> bool:
        with _lock:
            if self._users:
                return False
            self._forget()
        for clean in (
            self.staging.close,
            *(lambda event=event: cudart.destroy_event(event) for event in self._spare_events),
            *(lambda stream=stream: cudart.destroy_stream(stream) for stream in self._streams),
        ):
            try:
                clean()
            except CudaError as error:
                logger.warning("%r: %s", self, error)
        return True

    def _forget(self) -> None:
        self.is_stopped = True
        if _devices.get(self.id) is self:
            del _devices[self.id]

    def stop(self) -> None:
        """The process ends: do no more."""
        self.is_stopped = True
        self._jobs.put(None)
        self._thread.join(_EXIT_PATIENCE)


def _resolve(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


# One for each GPU of this process

_devices: dict[int, Device] = {}
_running: set[Device] = set()
"""Whose threads are there: also one that nobody uses any more and that is giving back what it has
of CUDA. The process does not end under it."""

_lock = threading.Lock()


def open_device(device_id: int) -> Device:
    """Return a device, for a user that calls ``let_go`` at the end. Blocking at the first time.

    Raises:
        CudaError: this process cannot use that GPU; the message says why.
    """
    with _lock:
        device = _devices.get(device_id)
        if device is not None:
            device._users += 1  # noqa: SLF001 # of this module
    if device is not None:
        device.facts  # noqa: B018 # started by another thread, maybe not through yet
        return device
    cudart.check_available(device_id)
    fresh = Device(device_id)
    with _lock:
        device = _devices.setdefault(device_id, fresh)
        device._users += 1  # noqa: SLF001 # of this module
    if device is fresh:
        device.start()
    device.facts  # noqa: B018 # as above
    return device


def _stop_all() -> None:
    for device in list(_running):
        device.stop()


atexit.register(_stop_all)


def _start_over() -> None:
    """A forked child has none of these threads; its parent's devices are not its own."""
    global _lock  # noqa: PLW0603 # another thread may have held it
    _lock = threading.Lock()
    _devices.clear()
    _running.clear()


os.register_at_fork(after_in_child=_start_over)
