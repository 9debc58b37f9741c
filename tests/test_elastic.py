"""Pools that grow when callers wait, and shrink when nobody does."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from support import own_regions, until

import triton_zerocopy as tz
from triton_zerocopy import _engine

pytestmark = pytest.mark.anyio

PAGE = 4096


def tensor(seconds, tag):
    x = np.full(16, tag, np.float32)
    x[0] = seconds
    return x


async def call(model, seconds, tag, way="infer"):
    """Return whether the answer is that of this call."""
    x = tensor(seconds, tag)
    if way == "infer":
        return np.array_equal((await model.infer({"INPUT0": x}))["OUTPUT0"], x + 1)
    async with model.lease() as lease:
        lease.inputs["INPUT0"][:] = x
        return np.array_equal((await lease.infer())["OUTPUT0"], x + 1)


async def test_it_grows_and_shrinks(server, monkeypatch):
    monkeypatch.setattr(_engine, "IDLE", 0.15)
    async with tz.Client(server.grpc_url) as client:
        async with client.model("slow", slots=(1, 4), shapes={"INPUT0": (16,)}) as model:
            assert len(own_regions()) == 1
            assert all(await asyncio.gather(*(call(model, 0.02, tag) for tag in range(8))))
            assert len(own_regions()) == 4
            await until(lambda: len(own_regions()) == 1)
            registered = await client.triton.get_system_shared_memory_status()
            assert len(registered.regions) == 1
            assert model.statistics().available == 4
            assert await call(model, 0, 9)


async def test_shrinking_disturbs_no_call(server, monkeypatch):
    monkeypatch.setattr(_engine, "IDLE", 0.01)
    async with tz.Client(server.grpc_url) as client:
        async with client.model("slow", slots=(1, 4)) as model:
            for _ in range(6):
                assert all(await asyncio.gather(*(call(model, 0.03, tag) for tag in range(4))))
                await asyncio.sleep(0.02)
            async with model.lease({"INPUT0": (16,)}) as lease:
                kept = lease.inputs["INPUT0"]
                kept[:] = 7
                await until(lambda: len(own_regions()) == 1)
            assert await call(model, 0, 1)
            assert (kept == 7).all()
            del kept


@pytest.mark.parametrize("way", ["infer", "lease"])
async def test_without_memory_for_another_slot_callers_wait(server, way):
    async with tz.Client(server.grpc_url, max_shm_bytes=2 * PAGE) as client:
        async with client.model("slow", slots=(1, 4)) as model:
            calls = [call(model, 0.02, tag, way) for tag in range(10)]
            assert all(await asyncio.gather(*calls))
            assert len(own_regions()) <= 2
        async with client.model("slow", slots=(3, 4)) as model:
            results = await asyncio.gather(
                *(call(model, 0.02, tag, way) for tag in range(4)), return_exceptions=True
            )
            assert tz.CapacityError in map(type, results), "three there must be"


async def test_memory_that_is_there_again_is_used(server, monkeypatch):
    monkeypatch.setattr(_engine, "IDLE", 1)
    async with tz.Client(server.grpc_url, max_shm_bytes=3 * PAGE) as client:
        region = await client.region(2 * PAGE)
        async with client.model("slow", slots=(1, 3)) as model:
            assert all(await asyncio.gather(*(call(model, 0.02, tag) for tag in range(4))))
            assert model.statistics().available == 1
            await region.aclose()
            await until(lambda: model.statistics().available == 3)
            assert all(await asyncio.gather(*(call(model, 0.02, tag) for tag in range(4))))


async def test_over_the_wire_nothing_is_made(server):
    async with tz.Client(server.grpc_url, memory="wire") as client:
        async with client.model("slow", slots=(1, 3)) as model:
            assert all(await asyncio.gather(*(call(model, 0, tag) for tag in range(5))))
            assert not own_regions()


@pytest.mark.parametrize("slots", [0, -1, 1.5, True, "4", (0, 2), (3, 2), (1, 2, 3), (1,), None])
async def test_what_is_no_number_of_slots(server, slots):
    async with tz.Client(server.grpc_url) as client:
        with pytest.raises(tz.InputError, match="slots is a number from 1 on"):
            client.model("slow", slots=slots)
