"""Running the blocking code of this package from async code, so that cancelling leaves nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio
import anyio.to_thread


async def run_abortable(
    function: Callable[[threading.Event], None], undo: Callable[[], None]
) -> None:
    """Run a function in a thread.

    Cancellation: the function is told to give up through its event and awaited; if it succeeded
    all the same, `undo` is run. Then the cancellation goes on. Should the event loop not let us
    wait, the threads still do all of this by themselves.

    Args:
        function: Blocking code that watches the event.
        undo: Takes back what the function did; harmless if it did nothing.
    """
    abort = threading.Event()
    job = _Job(lambda: function(abort))
    try:
        await job.wait()
    except anyio.get_cancelled_exc_class():
        abort.set()

        def clean_up() -> None:
            job.ended.wait()
            undo()

        await run_to_end(clean_up)
        raise
    if job.failure is not None:
        raise job.failure


async def run_to_end(function: Callable[[], None]) -> None:
    """Run a function in a thread and wait for its end, come what may.

    Cancellation: takes effect when the function has ended.
    """
    job = _Job(function)
    cancelled: BaseException | None = None
    while not job.ended.is_set():
        try:
            # The shield holds back anyio's cancellation, but not a plain task.cancel().
            with anyio.CancelScope(shield=True):
                await job.wait()
        except anyio.get_cancelled_exc_class() as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from job.failure
    if job.failure is not None:
        raise job.failure


class _Job:
    """A thread that certainly runs, unlike one from a pool whose hand-over can be cancelled."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.ended = threading.Event()
        self.failure: BaseException | None = None
        self._function = function
        threading.Thread(target=self._run, name="triton_zerocopy.testing").start()

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:  # noqa: BLE001 # raised again by whoever waits
            self.failure = error
        finally:
            self.ended.set()

    async def wait(self) -> None:
        # A limiter of its own: other blocking code of the caller must not hold this up.
        await anyio.to_thread.run_sync(
            self.ended.wait, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
        )
