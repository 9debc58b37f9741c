"""`Device`: one GPU as this process uses it, through a thread of the library's own.

All CUDA calls of the library are made in this thread, which sets its device once, but for those
that wait until the whole GPU is idle (`BlockingCalls`). So the caller's threads and their current
device are never touched, and waiting for the GPU blocks neither them nor the event loop: what is
queued is followed by an event, and the thread looks at its events and at new jobs in turn.

The thread lives as long as anyone uses the device: a client, or memory that is still alive.

What holds after an error:

- a job that raised has told whoever waits for it; the thread goes on;
- work that was queued before the error is waited for, before its memory is used again;
- a stream that another library destroyed is not waited for by name: all of the GPU is.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Final, TypeVar

from .._errors import CudaError
from . import cudart
from .blocking import BlockingCalls
from .countdown import Finish
from .cudart import DeviceFacts
from .errors import cuda_error
from .staging import Staging
from .streams import Streams

logger = logging.getLogger("triton_zerocopy")

Result = TypeVar("Result")

_SPINS: Final = 20
_SHORTEST: Final = 20e-6  # seconds between two looks at the GPU
_LONGEST: Final = 500e-6
_EXIT_PATIENCE: Final = 2.0  # seconds


class Device:
    """A GPU, made by `open_device`.

    Args:
        device_id: its ordinal.
        ended: called in the device's thread at its end.

    Attributes:
        blocking: makes the calls that wait for all of the GPU.
        streams: what is queued on it; for jobs.
        staging: copies host arrays.
        is_stopped: True when it cannot be used any more.
    """

    streams: Streams

    def __init__(self, device_id: int, ended: Callable[[Device], None]) -> None:
        self.id = device_id
        self.staging = Staging(self)
        self.blocking = BlockingCalls(device_id, self.post)
        self.is_stopped = False
        self._ended = ended
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._users = 0
        self._users_lock = threading.Lock()
        self._pinned: set[object] = set()
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

    def join(self) -> bool:
        """One user more, who calls `let_go` at the end. False if it is too late."""
        with self._users_lock:
            self._users += not self.is_stopped
            return not self.is_stopped

    def let_go(self) -> None:
        """One user less."""
        self.post(lambda: self.count_users(-1))

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
        return self.begin(lambda finish: self.streams.when_settled(handles, finish))

    # In the thread

    def count_users(self, change: int) -> None:
        """Count who needs the device; without users its thread ends."""
        with self._users_lock:
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
        self._thread.start()
        self._started.result()

    def _run(self) -> None:
        try:
            self._work()
        finally:
            self._ended(self)

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
            self.streams = Streams(self.blocking)
        except BaseException as error:  # noqa: BLE001 # raised where the device is opened
            self.is_stopped = True
            self._started.set_exception(error)
            return
        self._started.set_result(facts)
        while (job := self._next_job()) is not None:
            self._guard(job)
            del job  # what it refers to may be the last user

    def _next_job(self) -> Callable[[], None] | None:
        looks, pause = 0, _SHORTEST
        while self.streams.is_waiting:
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
        if self._retire():
            return None
        return self._jobs.get()

    def _look(self) -> bool:
        """Finish what the GPU has done; tell whether there was anything."""
        found = self.streams.look()
        for finish in found:
            self._guard(finish)
        return bool(found)

    def _guard(self, work: Callable[[], None]) -> None:
        """Run something that nobody waits for; the thread goes on whatever happens."""
        try:
            work()
        except Exception:
            logger.exception("a job of %r failed", self)

    # The end

    def _retire(self) -> bool:
        """Give back what it has of CUDA, if nobody uses it any more."""
        if self.blocking.under_way or not self._jobs.empty():
            return False
        with self._users_lock:
            if self._users:
                return False
            self.is_stopped = True
        self.blocking.close()
        for problem in (*self.staging.close(), *self.streams.close()):
            logger.warning("%r: %s", self, problem)
        return True

    def stop(self) -> None:
        """The process ends: do no more."""
        self.is_stopped = True
        self._jobs.put(None)
        self._thread.join(_EXIT_PATIENCE)
        self.blocking.close(_EXIT_PATIENCE)


def _resolve(future: asyncio.Future[None], error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
