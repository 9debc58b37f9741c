"""Taking the time: callers call for a while, and the event loop is watched meanwhile."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from .callers import Call

_TICK: Final = 0.002
"""Seconds between two looks at the loop: often enough to see what a service would feel, and
seldom enough to cost the callers next to nothing."""


@dataclass(frozen=True, slots=True)
class Limit:
    """When to stop: after some seconds, or after some calls if that is given."""

    seconds: float
    calls: int | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """What was measured, in seconds.

    Attributes:
        latencies: of each call, sorted.
        elapsed: from the first call's start to the last one's end.
        cpu: processor time of this process in all its threads.
        stall: the longest time that the event loop was late.
    """

    latencies: array[float]
    elapsed: float
    cpu: float
    stall: float

    @property
    def calls(self) -> int:
        return len(self.latencies)

    @property
    def median(self) -> float:
        return statistics.median(self.latencies)

    @property
    def p99(self) -> float:
        """The latency that 99 of 100 calls kept to."""
        return self.latencies[math.ceil(0.99 * self.calls) - 1]

    @property
    def per_second(self) -> float:
        return self.calls / self.elapsed

    @property
    def cpu_per_call(self) -> float:
        return self.cpu / self.calls


class StallSampler:
    """Asks the event loop again and again to be woken, and notes how late it was."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._loop = asyncio.get_running_loop()
        self._planned = 0.0
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        # Not the loop's own clock: uvloop's moves in steps of a millisecond.
        self._planned = time.perf_counter() + _TICK
        self._handle = self._loop.call_later(_TICK, self._wake)

    def stop(self) -> None:
        """Stop; a stall that lasts until now counts."""
        self._note()
        if self._handle is not None:
            self._handle.cancel()

    def _wake(self) -> None:
        self._note()
        self.start()

    def _note(self) -> None:
        self.longest = max(self.longest, time.perf_counter() - self._planned)


class _Calling:
    """Callers that share one limit."""

    def __init__(self, call: Call, limit: Limit, latencies: array[float]) -> None:
        self._call = call
        self._left = limit.calls
        self._deadline = time.perf_counter() + limit.seconds
        self._latencies = latencies

    def _may_go_on(self) -> bool:
        if self._left is None:
            return time.perf_counter() < self._deadline
        self._left -= 1
        return self._left >= 0

    async def go_on(self) -> None:
        while self._may_go_on():
            start = time.perf_counter()
            await self._call()
            self._latencies.append(time.perf_counter() - start)


async def measure(
    call: Call, callers: int, limit: Limit, tell: Callable[[int, float], None]
) -> Timing:
    """Have so many callers call until the limit, each as soon as its last call has ended.

    Args:
        call: makes one call.
        callers: how many there are.
        limit: when to stop; of a limit of calls at least one is made.
        tell: is told now and then how many calls were made, and in how many seconds.
    """
    latencies: array[float] = array("d")
    sampler = StallSampler()
    start, cpu_start = time.perf_counter(), time.process_time()
    calling = _Calling(call, limit, latencies)
    telling = asyncio.create_task(_keep_telling(latencies, start, tell))
    sampler.start()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(calling.go_on())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the others failed for the same reason
    finally:
        elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu_start
        sampler.stop()
        telling.cancel()
        await asyncio.wait([telling])
    return Timing(array("d", sorted(latencies)), elapsed, cpu, sampler.longest)


async def warm_up(call: Call, callers: int, seconds: float) -> None:
    """Call without measuring."""
    if seconds > 0:
        await measure(call, callers, Limit(seconds), lambda *_: None)


async def _keep_telling(
    latencies: array[float], start: float, tell: Callable[[int, float], None]
) -> None:
    while True:
        await asyncio.sleep(0.2)
        tell(len(latencies), time.perf_counter() - start)
