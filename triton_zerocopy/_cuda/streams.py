"""`Streams`: what is queued on a GPU, in which order, and when it is done.

Used in the thread of a `Device`. It waits for nothing here: what is queued is followed by an
event, which `look` asks for.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Final

from .._errors import CudaError
from . import cudart
from .blocking import BlockingCalls
from .countdown import Countdown, Finish

_OWN: Final = 4
_GUEST: Final = 28
"""What waits for others' work goes on streams apart, in turn: a producer that takes long holds
up its own call, and of the rest only those whose producer got the same stream."""


class Streams:
    """The library's streams and events on one GPU.

    Args:
        blocking: makes the calls that wait.
    """

    def __init__(self, blocking: BlockingCalls) -> None:
        self._blocking = blocking
        self._streams = [cudart.make_stream() for _ in range(_OWN + _GUEST)]
        self._pending: list[tuple[int, Finish]] = []
        self._spare_events: list[int] = []
        self._turn = 0

    @property
    def is_waiting(self) -> bool:
        """Whether the GPU has yet to do something that is followed."""
        return bool(self._pending)

    def own(self) -> int:
        """Return a stream for work that waits for nobody else's."""
        self._turn += 1
        return self._streams[self._turn % _OWN]

    def guest(self) -> int:
        """Return a stream for work that waits for others'. From any thread."""
        self._turn += 1
        return self._streams[_OWN + self._turn % _GUEST]

    # Waiting

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
                    self.when_idle(count.done)  # it is not known whose
                else:
                    self.when_reached(stream, count.done)
            except CudaError:
                self.when_idle(count.done)  # destroyed, with its work still going on
        count.close()

    def when_idle(self, finish: Finish) -> None:
        """Have ``finish`` called when all that is queued on the GPU by now is done."""
        self._blocking.run(cudart.synchronize_device, finish)

    def order(self, stream: int, after: Iterable[int]) -> bool:
        """Have what is queued on ``stream`` from now on wait for what is on others.

        Returns:
            False if one of these cannot be named here, or was destroyed: `when_idle` waits for
            that one, too.
        """
        for other in after:
            if other == stream:
                continue
            if other == cudart.PER_THREAD_STREAM:
                return False
            event = self._spare_events.pop() if self._spare_events else cudart.make_event()
            try:
                cudart.record(event, other)
                cudart.wait_for(stream, event)
            except CudaError:
                return False
            finally:
                # A stream that waits for an event waits for that record of it.
                self._spare_events.append(event)
        return True

    def look(self) -> list[partial[None]]:
        """Return what is to be called now: the GPU has done what was waited for."""
        found = []
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
            found.append(partial(finish, problem))
        return found

    # The end

    def close(self) -> list[CudaError]:
        """Give them back; nothing is waited for any more. Returns what went wrong."""
        problems = []
        for give_back, handles in (
            (cudart.destroy_event, self._spare_events),
            (cudart.destroy_stream, self._streams),
        ):
            for handle in handles:
                try:
                    give_back(handle)
                except CudaError as error:
                    problems.append(error)
        return problems
