"""`Waiter`: what the caller of one call waits for, and can go on with at once.

A task that waits for asyncio's own future goes on one round of the event loop after that got its
result. For a small call this round, with its look at all sockets, takes longer than many of the
call's own steps. So a waiter can resume its task right where the answer arrives: in a callback
of the event loop, where no other task is running, just as in the next round.

That is for a caller who is alone, and for a transport that gathers requests. Otherwise, those whose
answers came together go on in the next round, together: requests that are sent one by one, between
the answers, wake the server as often.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Waiter(Generic[Result]):
    """A result to be awaited by one task, with as much of a future as that task needs.

    asyncio takes any object for a future that has ``_asyncio_future_blocking``
    (`asyncio.isfuture`), and asks it for its loop as ``_loop``.

    Args:
        loop: the running event loop.

    Cancellation: ends the waiting, as with a future; a result that comes later is dropped.
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
        self._is_done = False
        self._error: BaseException | None = None
        self._wake: Callable[[Any], object] | None = None
        self._asyncio_future_blocking = False

    # For whoever has the result

    def set_result(self, result: Result, *, at_once: bool) -> None:
        """Give the result; it is dropped if the task was cancelled.

        Args:
            result: what the task gets.
            at_once: the task goes on before this returns, unless another one is running.
        """
        if self._is_done:
            return
        self._result = result
        self._is_done = True
        wake, self._wake = self._wake, None  # it refers to the task, which may refer to this
        if wake is None:
            return
        if at_once and asyncio.current_task(self._loop) is None:
            self._context.run(wake, self)
        else:
            self._loop.call_soon(wake, self, context=self._context)

    def set_exception(self, error: BaseException) -> None:
        """Give an error, which is raised where the task waits; dropped if it was cancelled."""
        if self._is_done:
            return
        self._error = error
        self._is_done = True
        wake, self._wake = self._wake, None
        if wake is not None:
            self._loop.call_soon(wake, self, context=self._context)

    # For the task

    def __await__(self) -> Generator[Any, None, Result]:
        if self._is_done:
            return self.result()
        self._asyncio_future_blocking = True
        yield self  # the task asks for the result when it is woken, and raises an error here
        return self._result

    def result(self) -> Result:
        """Return the result, or raise the error, which is told once.

        An error that was kept here would refer to itself through its traceback, and with it the
        caller's arrays would live until the garbage is collected.
        """
        error, self._error = self._error, None
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context) -> None:
        """Remember how the task is woken."""
        self._wake = callback
        self._context = context

    def cancel(self, msg: Any = None) -> bool:
        """The task was cancelled."""
        if self._is_done:
            return False
        self.set_exception(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        return True
