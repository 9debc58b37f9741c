"""Many large calls at once: how long the event loop stands still, and what memory it takes.

Each measurement runs in a process of its own, so that nobody starts with the memory that another
one left to the allocator. Run as a program, this module is such a process.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tritonclient.grpc.aio import InferenceServerClient

import triton_zerocopy as tz

from . import peers
from .backends import MEMCPY
from .callers import check
from .processes import Conditions, measure_apart, report
from .workloads import SMALL, TWELVE, Array

NAME = "burst"
CALLS = 40
SLOTS = 4
_TICK = 0.001  # seconds
_MB = 1e6
_PROC = Path("/proc/self")

EXPECTED_MB = (SLOTS * 2 + CALLS) * TWELVE.tensor_bytes / _MB
"""The slots, each with room for an input and an output, and the results that are held."""

Call = Callable[[], Awaitable[Array]]


@dataclass
class Ticker:
    """Sleeps for a moment again and again, and notes how late it wakes up."""

    latest: float = 0.0

    async def run(self) -> None:
        while True:
            planned = time.perf_counter() + _TICK
            await asyncio.sleep(_TICK)
            self.latest = max(self.latest, time.perf_counter() - planned)


@dataclass
class Bursts:
    """What was measured of one contender, a number for each process."""

    name: str
    stall_ms: list[float] = field(default_factory=list)
    warm_stall_ms: list[float] = field(default_factory=list)
    rss_growth_mb: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def median(self, what: str) -> float:
        """Median of one of the measures."""
        values: list[float] = getattr(self, what)
        return statistics.median(values)


# In the process that is measured


async def _ours(stack: AsyncExitStack, url: str, x: Array) -> Call:
    client = await stack.enter_async_context(tz.Client(url))
    small = await client.model(SMALL.model_name(MEMCPY), memory="system")
    await small.infer(SMALL.inputs(0))
    model = await client.model(TWELVE.model_name(MEMCPY), memory="system", slots=SLOTS)

    async def call() -> Array:
        return (await model.infer({"INPUT0": x}))["OUTPUT0"]

    return call


async def _inline(stack: AsyncExitStack, url: str, x: Array) -> Call:
    client = await stack.enter_async_context(InferenceServerClient(url))
    await peers.Inline(SMALL.inputs(0), client, SMALL.model_name(MEMCPY)).call()

    async def call() -> Array:
        # A request per call: its bytes are in use until the call has ended.
        caller = peers.Inline({"INPUT0": x}, client, TWELVE.model_name(MEMCPY))
        return (await caller.call())["OUTPUT0"]

    return call


async def _by_hand(stack: AsyncExitStack, url: str, x: Array) -> Call:
    small = await stack.enter_async_context(peers.by_hand(url, SMALL.model_name(MEMCPY), SMALL, 1))
    await small[0].call()
    client = await stack.enter_async_context(InferenceServerClient(url))
    free: asyncio.LifoQueue[peers.ByHand] = asyncio.LifoQueue()
    made = 0

    async def call() -> Array:
        nonlocal made
        if free.empty() and made < SLOTS:
            made += 1
            caller = peers.ByHand({"INPUT0": x}, client, TWELVE.model_name(MEMCPY))
            await caller.open()
            stack.push_async_callback(caller.aclose)
        else:
            caller = await free.get()
        try:
            return await caller.call()
        finally:
            free.put_nowait(caller)

    return call


async def _nothing(stack: AsyncExitStack, url: str, x: Array) -> Call:
    del stack, url

    async def call() -> Array:
        await asyncio.sleep(0.5)
        return x

    return call


CONTENDERS = {
    "the ticker alone": _nothing,
    "tritonclient.grpc.aio, inline": _inline,
    "tritonclient.grpc.aio + shm by hand": _by_hand,
    "triton_zerocopy infer": _ours,
}


async def _measure(url: str, name: str) -> dict[str, float]:
    (x,) = TWELVE.inputs(0).values()
    async with AsyncExitStack() as stack:
        call = await CONTENDERS[name](stack, url, x)
        rss = _reset_peak()
        stall, seconds = await _burst(call, x)
        growth = _status("VmHWM") - rss
        warm_stall, _ = await _burst(call, x)
    return {
        "stall_ms": stall * 1e3,
        "warm_stall_ms": warm_stall * 1e3,
        "rss_growth_mb": growth / _MB,
        "seconds": seconds,
    }


async def _burst(call: Call, x: Array) -> tuple[float, float]:
    ticker = Ticker()
    ticking = asyncio.create_task(ticker.run())
    start = time.perf_counter()
    results = await asyncio.gather(*[call() for _ in range(CALLS)])
    seconds = time.perf_counter() - start
    await asyncio.sleep(2 * _TICK)  # the ticker notes the last stall
    ticking.cancel()
    for result in results:
        check("burst", x, result)
    return ticker.latest, seconds


def _reset_peak() -> int:
    """Make the present memory the peak, and return it."""
    (_PROC / "clear_refs").write_text("5", "ascii")
    return _status("VmRSS")


def _status(what: str) -> int:
    for line in (_PROC / "status").read_text("ascii").splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(what)


# In the process that prints


def measure(conditions: Conditions, rounds: int) -> list[Bursts]:
    """Measure all contenders in turns, each time in a new process."""
    all_bursts = [Bursts(name) for name in CONTENDERS]
    for _ in range(rounds):
        for bursts in all_bursts:
            measured = measure_apart(f"{__package__}.burst", [bursts.name], conditions)
            for what, value in measured.items():
                getattr(bursts, what).append(value)
    return all_bursts


if __name__ == "__main__":
    report(_measure)
