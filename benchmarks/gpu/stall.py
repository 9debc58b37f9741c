"""Many large calls at once on the GPU: how long the event loop stands still.

Each measurement runs in a process of its own. Run as a program, this module is such a process.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import triton_zerocopy as tz

from ..backends import MEMCPY
from ..burst import Ticker
from ..callers import check
from ..processes import Conditions, measure_apart, report
from ..workloads import Array, Workload
from .gpus import open_gpu
from .modes import Mode
from .ours import MEMORY
from .workloads import workloads_for

NAME = "stall"
CALLS = 16
LIMIT_MS = 5.0

_ALONE = "the ticker alone"
NUMPY = "triton_zerocopy infer, numpy in and out"
DEVICE = "triton_zerocopy infer, device in and out"
CONTENDERS = (_ALONE, NUMPY, DEVICE)

Call = Callable[[], Awaitable[Any]]


@dataclass
class Stalls:
    """What was measured of one contender, a number for each process."""

    name: str
    stall_ms: list[float] = field(default_factory=list)
    warm_stall_ms: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def median(self, what: str) -> float:
        """Median of one of the measures."""
        values: list[float] = getattr(self, what)
        return statistics.median(values)


async def _measure(url: str, name: str, mode_text: str) -> dict[str, float]:
    mode = Mode.parse(mode_text)
    mode.prepare()
    work = workloads_for(mode)
    (x,) = work.large.inputs(0).values()
    async with AsyncExitStack() as stack:
        call = await _caller(stack, url, name, mode, work.large, x)
        stall, seconds = await _burst(call)
        warm_stall, _ = await _burst(call)
        if name != _ALONE:
            found = await call()
            check(name, x, found if name == NUMPY else await found.numpy())
    return {"stall_ms": stall * 1e3, "warm_stall_ms": warm_stall * 1e3, "seconds": seconds}


async def _caller(
    stack: AsyncExitStack, url: str, name: str, mode: Mode, workload: Workload, x: Array
) -> Call:
    if name == _ALONE:
        return lambda: asyncio.sleep(0.5)
    given = x if name == NUMPY else open_gpu(mode).tensor(x)
    client = await stack.enter_async_context(tz.Client(url, memory=MEMORY))
    model = await client.model(
        workload.model_name(MEMCPY), slots=CALLS, shapes={"INPUT0": workload.shape}
    )

    async def call() -> Any:
        result = await model.infer({"INPUT0": given})
        return await result.numpy("OUTPUT0") if name == NUMPY else result["OUTPUT0"]

    return call


async def _burst(call: Call) -> tuple[float, float]:
    ticker = Ticker()
    ticking = asyncio.create_task(ticker.run())
    start = time.perf_counter()
    results = await asyncio.gather(*[call() for _ in range(CALLS)])
    seconds = time.perf_counter() - start
    await asyncio.sleep(0.002)  # the ticker notes the last stall
    ticking.cancel()
    del results
    return ticker.latest, seconds


def measure(conditions: Conditions, rounds: int, mode: Mode) -> list[Stalls]:
    """Measure all contenders in turns, each time in a new process."""
    found = [Stalls(name) for name in CONTENDERS]
    for _ in range(rounds):
        for stalls in found:
            arguments = [stalls.name, str(mode)]
            measured = measure_apart(f"{__package__}.stall", arguments, conditions)
            for what, value in measured.items():
                getattr(stalls, what).append(value)
    return found


if __name__ == "__main__":
    report(_measure)
