"""Contenders take turns; each turn is a slice of time in which they call as often as they can."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from .backends import MEMCPY
from .callers import Caller, Opener
from .workloads import Workload

SLICE = 0.15  # seconds of one turn
READY = "ready"
"""What a contender in a process of its own says when it can take turns."""

_WARM_UP_CALLS = 3


@dataclass(frozen=True)
class Contender:
    """One of those that are measured against each other.

    Attributes:
        name: what it is called in the results.
        open: opens its callers.
        workload: what they send.
        is_http: whether they are given the server's HTTP url, else its gRPC url.
        is_unix: whether that is of the server on a Unix socket.
        needs: what has to be installed for it, if anything; empty if it is here.
    """

    name: str
    open: Opener
    workload: Workload
    is_http: bool = False
    is_unix: bool = False
    needs: str = ""


@dataclass(frozen=True)
class Goal:
    """What the ratio of two contenders' times is meant to be.

    Attributes:
        dividend: name of a contender.
        divisor: name of another one.
        limit: the ratio that is to be reached.
        is_at_least: whether the ratio is to be that or more, else that or less.
        on_uvloop: the ratio that is to be reached on uvloop, if that is another one.
        is_cpu: whether it is about the client's processor time.
        beyond: name of a contender whose time is taken off the divisor's first.
    """

    dividend: str
    divisor: str
    limit: float
    is_at_least: bool = False
    on_uvloop: float | None = None
    is_cpu: bool = False
    beyond: str = ""

    @property
    def names(self) -> set[str]:
        """Names of all contenders it is about."""
        return {self.dividend, self.divisor, self.beyond} - {""}

    def __str__(self) -> str:
        divisor = f"({self.divisor} - {self.beyond})" if self.beyond else self.divisor
        return f"{self.dividend} / {divisor}{', client CPU' if self.is_cpu else ''}"


@dataclass(frozen=True)
class Row:
    """Contenders that do the same work.

    Attributes:
        name: how the command line calls it.
        title: what is measured.
        backend: what the server does.
        callers: how many call at the same time.
        reference: name of the contender that the others' times are divided by; empty for none.
    """

    name: str
    title: str
    backend: str
    contenders: Sequence[Contender]
    goals: Sequence[Goal]
    callers: int = 1
    reference: str = ""

    @property
    def present(self) -> Sequence[Contender]:
        """The contenders that have what they need."""
        return [contender for contender in self.contenders if not contender.needs]

    @property
    def checked_goals(self) -> Sequence[Goal]:
        """The goals whose contenders are both present."""
        names = {contender.name for contender in self.present}
        return [goal for goal in self.goals if goal.names <= names]


@dataclass
class Samples:
    """What was measured of one contender, a number for each turn."""

    name: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def add(self, turn: Sequence[float]) -> None:
        """Add the time and the processor time of a call, as a turn had them."""
        seconds, cpu_seconds = turn
        self.seconds.append(seconds)
        self.cpu_seconds.append(cpu_seconds)

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
    """Verify the contenders of a row, then measure them in turns, all of them in this process."""
    for contender in row.present:
        await _verify(url, row, contender)
    async with AsyncExitStack() as stack:
        teams = [
            await stack.enter_async_context(_warm_team(url, row, contender))
            for contender in row.present
        ]
        samples = [Samples(contender.name) for contender in row.present]
        for _ in range(rounds):
            for team, sample in zip(teams, samples, strict=True):
                sample.add(await _take_turn(team))
        return samples


async def serve_turns(url: str, row: Row, contender: Contender) -> None:
    """Be one contender, in a process of its own, and take a turn for each line that comes in.

    Says on stdout when it is ready, and after each turn what came out.
    """
    await _verify(url, row, contender)
    async with _warm_team(url, row, contender) as team:
        print(READY, flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await _take_turn(team)), flush=True)


@asynccontextmanager
async def _warm_team(url: str, row: Row, contender: Contender) -> AsyncIterator[Sequence[Caller]]:
    name = contender.workload.model_name(row.backend)
    async with contender.open(url, name, contender.workload, row.callers) as team:
        for _ in range(_WARM_UP_CALLS):
            await asyncio.gather(*[caller.call() for caller in team])
        await _take_turn(team)
        yield team


async def _verify(url: str, row: Row, contender: Contender) -> None:
    """See that every caller gets what it asked for, from a model that copies."""
    name = contender.workload.model_name(MEMCPY)
    async with contender.open(url, name, contender.workload, row.callers) as team:
        await asyncio.gather(*[caller.verify(contender.name) for caller in team])


async def _take_turn(team: Sequence[Caller]) -> tuple[float, float]:
    """Let all callers call for a while; return the time and the processor time of one call."""
    start, cpu_start = time.perf_counter(), time.process_time()
    deadline = start + SLICE
    if len(team) == 1:
        turns = [await team[0].turn(deadline)]
    else:
        turns = await asyncio.gather(*[caller.turn(deadline) for caller in team])
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    if turns[0].seconds is not None and turns[0].cpu_seconds is not None:
        seconds, cpu_seconds = turns[0].seconds, turns[0].cpu_seconds
    calls = sum(turn.calls for turn in turns)
    return seconds / calls, cpu_seconds / calls
