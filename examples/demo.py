"""The main job, on a real server: the same tensors inline, by infer, and by lease.

Starts a Triton, calls a model written in Python at three sizes in three ways, checks every
byte that comes back, and prints what one call took.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import numpy as np

import triton_zerocopy as tz
from triton_zerocopy.testing import PythonModel, TritonServer

ROUNDS = 7
SIZES = {"4 KB": 1 << 10, "1 MB": 1 << 18, "16 MB": 1 << 22}  # in float32 items


def invert(INPUT0):
    return {"OUTPUT0": -INPUT0}


MODEL = PythonModel(invert, inputs={"INPUT0": ("FP32", [-1])}, outputs={"OUTPUT0": ("FP32", [-1])})


async def measure(call: Callable[[], Awaitable[np.ndarray]], expected: np.ndarray) -> float:
    """Return the median milliseconds of a call; every result is compared bit by bit."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        result = await call()
        times.append(time.perf_counter() - start)
        if result.dtype != expected.dtype or result.tobytes() != expected.tobytes():
            sys.exit("a result differs from what the model was asked for")
    return statistics.median(times) * 1e3


async def run(client: tz.Client) -> None:
    print(f"{'tensor':>8} {'inline':>10} {'infer':>10} {'lease':>10}   milliseconds, median")
    async with (
        client.model("invert", memory="wire") as wire,
        client.model("invert", memory="system") as shared,
    ):
        for label, items in SIZES.items():
            x = np.random.default_rng(items).random(items, dtype=np.float32)

            async def inline(x: np.ndarray = x) -> np.ndarray:
                return (await wire.infer({"INPUT0": x}))["OUTPUT0"]

            async def infer(x: np.ndarray = x) -> np.ndarray:
                return (await shared.infer({"INPUT0": x}))["OUTPUT0"]

            row = [await measure(inline, -x), await measure(infer, -x)]

            async with shared.lease({"INPUT0": x.shape}) as lease:
                lease.inputs["INPUT0"][:] = x  # where the server reads it

                async def in_place(lease: tz.Lease = lease) -> np.ndarray:
                    return (await lease.infer())["OUTPUT0"]  # where the server wrote it

                row.append(await measure(in_place, -x))
            print(f"{label:>8} " + " ".join(f"{value:10.2f}" for value in row))
    print("every byte was checked")


async def main() -> None:
    print("starting a Triton server (the first time, it is downloaded) ...", flush=True)
    async with TritonServer(models={"invert": MODEL}) as server:
        async with tz.Client(server.grpc_url) as client:
            await run(client)


if __name__ == "__main__":
    asyncio.run(main())
