"""No needless copy: what a call allocates tells how often it copied."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import triton_zerocopy as tz

pytestmark = pytest.mark.anyio

SIZE = 4 << 20  # bytes


async def peak_of(call):
    """Return the most bytes that a call had allocated, the result included."""
    await call()
    await call()  # the sizes of variable outputs are known now
    tracemalloc.start()
    try:
        await call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def test_infer_allocates_nothing_once_its_results_come_back(server):
    """Results that nobody holds any more give their memory to the next."""
    base = np.zeros((2, SIZE // 4), np.float32)
    values = {
        "contiguous": base[0],
        "strided": np.zeros(SIZE // 2, np.float32)[::2],
        "byte-swapped": base[0].astype(">f4"),
    }
    async with tz.Client(server.grpc_url) as client, client.model("add_one") as model:
        for name, x in values.items():
            peak = await peak_of(lambda x=x: model.infer({"INPUT0": x}))
            assert peak < 0.1 * SIZE, name


async def test_infer_allocates_its_result_and_nothing_else(server):
    x = np.zeros(SIZE // 4, np.float32)
    async with tz.Client(server.grpc_url) as client, client.model("add_one") as model:
        held = []

        async def call():
            held.append(await model.infer({"INPUT0": x}))

        assert SIZE <= await peak_of(call) < 1.1 * SIZE


async def test_out_allocates_nothing(server):
    x, out = np.zeros(SIZE // 4, np.float32), np.zeros(SIZE // 4, np.float32)
    async with tz.Client(server.grpc_url) as client, client.model("add_one") as model:
        peak = await peak_of(lambda: model.infer({"INPUT0": x}, out={"OUTPUT0": out}))
        assert peak < 0.1 * SIZE


async def test_a_lease_allocates_nothing(server):
    async with tz.Client(server.grpc_url) as client, client.model("add_one") as model:

        async def call():
            async with model.lease({"INPUT0": (SIZE // 4,)}) as lease:
                lease.inputs["INPUT0"][:] = 1
                assert (await lease.infer())["OUTPUT0"][-1] == 2

        assert await peak_of(call) < 0.1 * SIZE


async def test_a_split_batch_and_rows_allocate_the_whole_output_once(server):
    held = []
    width = SIZE // 4 // 16
    x = np.zeros((16, width), np.float32)
    async with tz.Client(server.grpc_url) as client, client.model("wide_rows") as model:
        for value in (x, list(x)):

            async def call(value=value):
                held.append(await model.infer({"INPUT0": value}))

            assert SIZE <= await peak_of(call) < 1.2 * SIZE
