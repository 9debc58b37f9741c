"""`Handoff`: a future that wakes its waiter in the same turn of the event loop.

`asyncio.Future.set_result` only schedules the waiting task, so the task runs one turn of
the loop later, after another look at the selector: some 15 microseconds of each call. This
resumes the task right where the result is set. It is for one waiter, in one loop, set from
a callback of that loop and never from inside a task.

It follows the protocol by which tasks wait for futures that are not asyncio's own
(``_asyncio_future_blocking``, `asyncio.isfuture`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Handoff(Generic[Result]):
    """The result of something that cannot be cancelled; only waiting for it can.

    Args:
        loop: the loop of the waiter.
    """

    __slots__ = (
        "_asyncio_future_blocking",
        "_context",
        "_error",
        "_is_done",
        "_loop",
        "_result",
        "_wake",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._is_done = False
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._wake: Callable[[Any], object] | None = None
        self._context: Context | None = None

    # For the one who knows

    def deliver(self, result: Result) -> None:
        """Give the waiter its result, and let it run until it waits again.

        Does nothing if the waiter left.
        """
        if not self._is_done:
            self._result = result
            self._finish()

    def fail(self, error: BaseException) -> None:
        """Raise an error in the waiter. Does nothing if the waiter left."""
        if not self._is_done:
            self._error = error
            self._finish()

    def _finish(self) -> None:
        self._is_done = True
        if self._wake is not None:
            assert self._context is not None
            self._context.run(self._wake, self)

    # For the task that waits

    def __await__(self) -> Generator[Any, None, Result]:
        if not self._is_done:
            self._asyncio_future_blocking = True
            yield self
        return self.result()

    def result(self) -> Result:
        """Return the result or raise the error; a task asks when it is woken."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._result  # type: ignore[return-value]

    def add_done_callback(
        self, wake: Callable[[Any], object], *, context: Context | None = None
    ) -> None:
        """Remember how to wake the task. Called by the task."""
        self._wake = wake
        self._context = context

    def cancel(self, msg: object | None = None) -> bool:
        """Release the waiter with CancelledError. Called when its task is cancelled."""
        if self._is_done:
            return False
        self._is_done = True
        self._error = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        if self._wake is not None:
            # Not at once: whoever cancels is in the middle of something.
            self._loop.call_soon(self._wake, self, context=self._context)
        return True

    def done(self) -> bool:
        """Tell whether the waiter has been, or is being, woken."""
        return self._is_done

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop of the waiter. Called by the task, which checks it."""
        return self._loop
