"""Timeouts of many calls with one timer.

Nearly every call is answered long before its timeout. A timer for each of them costs more
than some of the calls' own steps, so all calls of a client share one: it is set for the
earliest deadline there was when it was set, and looks around when it fires.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

_NEVER: Final = float("inf")


class Deadline:
    """Cancels the task that entered it when its time has come; like `asyncio.timeout`.

    On leaving, a cancel that came from here is turned into TimeoutError; any other goes on.
    """

    __slots__ = ("_before", "_owner", "_task", "has_expired", "when")

    def __init__(self, owner: Deadlines, when: float) -> None:
        self.when = when
        self.has_expired = False
        self._owner = owner
        self._task: asyncio.Task[object] | None = None
        self._before = 0

    def expire(self) -> None:
        """The time has come."""
        assert self._task is not None
        self.has_expired = True
        self._task.cancel()

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call with a timeout is awaited inside a task")
        self._task = task
        self._before = task.cancelling()
        self._owner.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._owner.remove(self)
        if not self.has_expired:
            return
        assert self._task is not None
        is_ours = self._task.uncancel() <= self._before
        if is_ours and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise TimeoutError from error


class Deadlines:
    """The deadlines of one client.

    Args:
        loop: its loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._active: set[Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._set_for = _NEVER  # uvloop's timers tell another time than they were given

    def limit(self, seconds: float | None) -> Deadline:
        """Return a deadline in so many seconds, to be used in ``with``; None for never."""
        return Deadline(self, _NEVER if seconds is None else self._loop.time() + seconds)

    def add(self, deadline: Deadline) -> None:
        """Watch a deadline."""
        self._active.add(deadline)
        if deadline.when < self._set_for:
            self._set_timer(deadline.when)

    def remove(self, deadline: Deadline) -> None:
        """Stop watching it; the timer is left alone."""
        self._active.discard(deadline)

    def close(self) -> None:
        """Drop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._set_for = None, _NEVER

    def _set_timer(self, when: float) -> None:
        self.close()
        if when != _NEVER:
            self._timer, self._set_for = self._loop.call_at(when, self._look), when

    def _look(self) -> None:
        self._timer, self._set_for = None, _NEVER
        now = self._loop.time()
        for deadline in list(self._active):
            if deadline.when <= now and not deadline.has_expired:
                deadline.expire()
        waiting = [deadline.when for deadline in self._active if not deadline.has_expired]
        if waiting:
            self._set_timer(min(waiting))
