"""Contenders take turns; each turn is a slice of time in which they call as often as they can."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from .backends import MEMCPY
from .callers import Caller, Opener
from .workloads import Workload

SLICE = 0.15  # seconds of one turn
_WARM_UP_CALLS = 3


@dataclass(frozen=True)
class Contender:
    """One of those that are measured against each other."""

    name: str
    open: Opener
    workload: Workload


@dataclass(frozen=True)
class Goal:
    """What the ratio of two contenders' times is meant to be.

    Attributes:
        dividend: name of a contender.
        divisor: name of another one.
        limit: the ratio that is to be reached.
        is_at_least: whether the ratio is to be that or more, else that or less.
    """

    dividend: str
    divisor: str
    limit: float
    is_at_least: bool = False


@dataclass(frozen=True)
class Row:
    """Contenders that do the same work.

    Attributes:
        name: how the command line calls it.
        title: what is measured.
        backend: what the server does.
        callers: how many call at the same time.
    """

    name: str
    title: str
    backend: str
    contenders: Sequence[Contender]
    goals: Sequence[Goal]
    callers: int = 1


@dataclass
class Samples:
    """What was measured of one contender, a number for each turn."""

    name: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds of a call: elapsed time by the number of calls."""
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        """Seconds of processor time that this process spent on a call, in all its threads."""
        return statistics.median(self.cpu_seconds)

    @property
    def spread(self) -> float:
        """How far apart the middle half of the turns is, as a part of the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / self.median


async def measure(url: str, row: Row, rounds: int) -> list[Samples]:
    """Verify the contenders of a row, then measure them in turns."""
    for contender in row.contenders:
        await _verify(url, row, contender)
    async with AsyncExitStack() as stack:
        teams = [
            await stack.enter_async_context(
                contender.open(
                    url,
                    contender.workload.model_name(row.backend),
                    contender.workload,
                    row.callers,
                )
            )
            for contender in row.contenders
        ]
        for team in teams:
            for _ in range(_WARM_UP_CALLS):
                await asyncio.gather(*[caller.call() for caller in team])
            await _take_turn(team)
        samples = [Samples(contender.name) for contender in row.contenders]
        for _ in range(rounds):
            for team, sample in zip(teams, samples, strict=True):
                seconds, cpu_seconds = await _take_turn(team)
                sample.seconds.append(seconds)
                sample.cpu_seconds.append(cpu_seconds)
        return samples


async def _verify(url: str, row: Row, contender: Contender) -> None:
    """See that every caller gets what it asked for, from a model that copies."""
    name = contender.workload.model_name(MEMCPY)
    async with contender.open(url, name, contender.workload, row.callers) as team:
        await asyncio.gather(*[caller.verify(contender.name) for caller in team])


async def _take_turn(team: Sequence[Caller]) -> tuple[float, float]:
    """Let all callers call for a while; return the time and the processor time of one call."""
    start, cpu_start = time.perf_counter(), time.process_time()
    deadline = start + SLICE

    async def call_on(caller: Caller) -> int:
        count = 0
        while time.perf_counter() < deadline:
            await caller.call()
            count += 1
        return count

    if len(team) == 1:
        calls = await call_on(team[0])
    else:
        calls = sum(await asyncio.gather(*[call_on(caller) for caller in team]))
    return (time.perf_counter() - start) / calls, (time.process_time() - cpu_start) / calls
