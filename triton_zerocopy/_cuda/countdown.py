"""`Countdown`: several things that are under way, and one who waits for all of them."""

from __future__ import annotations

from collections.abc import Callable

Finish = Callable[[BaseException | None], None]
"""Tells whoever waits that it is done, or what went wrong. Called in the device's thread."""


class Countdown:
    """Calls ``finish`` once, when several things are done; with the first error there was."""

    def __init__(self, finish: Finish) -> None:
        self._finish = finish
        self._left = 1
        self._error: BaseException | None = None

    def more(self) -> None:
        """There is one thing more to wait for."""
        self._left += 1

    def done(self, error: BaseException | None) -> None:
        """One thing is done."""
        self._error = self._error or error
        self._left -= 1
        if not self._left:
            self._finish(self._error)

    def guard(self, work: Callable[[], None]) -> None:
        """Run work that may add things; what it raises is an error of all this."""
        self.more()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 # the waiter's
            self.done(error)
        else:
            self.done(None)

    def close(self) -> None:
        """Nothing more will come."""
        self.done(None)
