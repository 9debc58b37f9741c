"""Timeouts of many calls with one timer.

Nearly every call is answered long before its timeout. A timer for each of them costs more
than some of the calls' own steps, so all calls of a client share one: it is set for the
earliest deadline there was when it was set, and looks around when it fires.
"""

from __future__ import annotations

import asyncio
from functools import partial
from types import TracebackType
from typing import Final, Self

_NEVER: Final = float("inf")


class Deadline:
    """Cancels the task that entered it when its time has come; like `asyncio.timeout`.

    On leaving, a cancel that came from here is turned into TimeoutError; any other goes on.
    """

    __slots__ = ("_before", "_owner", "_task", "has_expired", "when")

    def __init__(self, owner: Deadlines, seconds: float | None) -> None:
        self.when = _NEVER if seconds is None else owner.loop.time() + seconds
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
        owner = self._owner
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a call with a timeout is awaited inside a task")
        self._task = task
        self._before = task.cancelling()
        owner.active.add(self)
        if self.when < owner.set_for:
            owner.set_timer(self.when)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._owner.active.discard(self)  # the timer is left alone
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

    Attributes:
        loop: the same.
        active: those that are watched.
        set_for: when the timer fires, in the loop's time. (uvloop's timers tell another time
            than they were given.)
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.active: set[Deadline] = set()
        self.set_for = _NEVER
        self._timer: asyncio.TimerHandle | None = None
        self.limit = partial(Deadline, self)
        """Makes a deadline in so many seconds, to be used in ``with``; None for never."""

    def close(self) -> None:
        """Drop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.set_for = None, _NEVER

    def set_timer(self, when: float) -> None:
        """Have the timer fire then."""
        self.close()
        if when != _NEVER:
            self._timer, self.set_for = self.loop.call_at(when, self._look), when

    def _look(self) -> None:
        self._timer, self.set_for = None, _NEVER
        now = self.loop.time()
        for deadline in list(self.active):
            if deadline.when <= now and not deadline.has_expired:
                deadline.expire()
        waiting = [deadline.when for deadline in self.active if not deadline.has_expired]
        if waiting:
            self.set_timer(min(waiting))
