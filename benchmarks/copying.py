"""``python -m benchmarks.copying``: what was measured to decide how tensors are copied.

Prints tables in Markdown. No server is needed.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from triton_zerocopy import _copying

from .workloads import Array

_ROUNDS = 31
_SIZES = (1_000_000, 4_800_000, 10_000_000, 16_000_000, 32_000_000, 64_000_000)  # bytes

Work = Callable[[], Awaitable[object]]


async def _in_turns(works: Mapping[str, Work]) -> dict[str, float]:
    """Return the median seconds of each, which take turns."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(_ROUNDS):
        for name, work in works.items():
            start = time.perf_counter()
            await work()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in taken.items()}


def _shared(byte_size: int) -> Array:
    """Return an array over new shared memory, whose pages were reserved and not used yet."""
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        os.posix_fallocate(file.fileno(), 0, byte_size)
        return np.frombuffer(mmap.mmap(file.fileno(), byte_size), np.uint8)


async def _where(threads: ThreadPoolExecutor) -> None:
    """Compare copies on the event loop, in a thread, and in several."""
    loop = asyncio.get_running_loop()
    print("| MB | on the event loop | in a thread | in pieces, in threads |\n|---:|---:|---:|---:|")
    for byte_size in _SIZES:
        source, target = np.ones(byte_size, np.uint8), _shared(byte_size)
        pieces = _copying.copy_jobs(target, source)

        async def here(target: Array = target, source: Array = source) -> None:
            _copying.copy(target, source)

        async def apart(target: Array = target, source: Array = source) -> None:
            await loop.run_in_executor(threads, _copying.copy, target, source)

        async def cut(pieces: list[_copying.Job] = pieces) -> None:
            await asyncio.gather(*[loop.run_in_executor(threads, piece) for piece in pieces])

        found = await _in_turns({"here": here, "apart": apart, "cut": cut})
        times = [f"{found[name] * 1e3:.2f} ms" for name in ("here", "apart")]
        times.append(f"{found['cut'] * 1e3:.2f} ms ({len(pieces)})" if len(pieces) > 1 else "")
        print(f"| {byte_size / 1e6:g} | {' | '.join(times)} |")


async def _into(title: str, first: Callable[[int], Array], then: Callable[[int], Array]) -> None:
    """Compare a copy into new memory with one into memory that was used before."""
    print(f"\n| MB | {title} |\n|---:|---:|---:|")
    for byte_size in _SIZES:
        source, used = np.ones(byte_size, np.uint8), then(byte_size)
        fresh: list[Array] = []

        async def make(byte_size: int = byte_size, fresh: list[Array] = fresh) -> None:
            fresh[:] = [first(byte_size)]

        async def into_fresh(source: Array = source, fresh: list[Array] = fresh) -> None:
            _copying.copy(fresh[0], source)

        async def into_used(source: Array = source, used: Array = used) -> None:
            _copying.copy(used, source)

        found = await _in_turns({"make": make, "fresh": into_fresh, "used": into_used})
        times = [f"{found[name] * 1e3:.2f} ms" for name in ("fresh", "used")]
        print(f"| {byte_size / 1e6:g} | {' | '.join(times)} |")


def _private(byte_size: int) -> Array:
    """Return an array over memory that the kernel has still to make."""
    return np.frombuffer(mmap.mmap(-1, byte_size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


def _touched(make: Callable[[int], Array]) -> Callable[[int], Array]:
    def made(byte_size: int) -> Array:
        array = make(byte_size)
        array[:: mmap.PAGESIZE] = 0
        return array

    return made


async def main() -> None:
    """Measure and print all of it."""
    with ThreadPoolExecutor(_copying.THREADS) as threads:
        await _where(threads)
    await _into("shared memory, first copy | later copies", _shared, _touched(_shared))
    await _into("a result in new memory | in memory used before", _private, _touched(_private))


if __name__ == "__main__":
    asyncio.run(main())
