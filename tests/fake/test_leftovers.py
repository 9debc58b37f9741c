"""Regions that a server did not let go of are asked for until it did, and given back then."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from models import MODELS
from support import own_regions, owner_files, until

import triton_zerocopy as tz
from triton_zerocopy.testing import FakeTriton, Fault

pytestmark = pytest.mark.anyio

X = np.arange(4, dtype=np.float32)
FORGET = "SystemSharedMemoryUnregister"


async def works(model):
    result = await model.infer({"INPUT0": X})
    np.testing.assert_array_equal(result["OUTPUT0"], X + 1)


async def test_an_unregister_that_meets_a_broken_link_is_made_up_for(fake):
    async with tz.Client(fake.grpc_url) as client:
        region = await client.region(4096)
        async with client.model("fixed", slots=3) as model:
            await asyncio.gather(*(works(model) for _ in range(3)))
            await fake.ainject(Fault(FORGET, drop=True, calls=4))
            with pytest.raises(tz.ServerUnavailable):
                await region.aclose()
        await until(lambda: not own_regions())
        assert (await fake.astate()).registered == []
        assert client.statistics().bytes_reserved == 0


@pytest.mark.parametrize("broken", [1, 2])
async def test_the_close_of_the_client_asks_for_the_last_time(fake, broken):
    """Over a link that just broke, it may not be the first time."""
    client = tz.Client(fake.grpc_url)
    async with client.model("fixed", slots=1) as model:
        await works(model)
        await fake.ainject(Fault(FORGET, drop=True, calls=broken))
    await client.aclose()
    assert (await fake.astate()).registered == []
    assert owner_files(fake.grpc_url) == set()


async def test_memory_comes_back_before_new_memory_is_wanted():
    """The budget has room for one slot: after a restart the old region goes first."""
    async with FakeTriton({"fixed": MODELS["fixed"]}) as server:
        async with tz.Client(server.grpc_url, max_shm_bytes=4096) as client:
            async with client.model("fixed", slots=1) as model:
                await works(model)
                await server.ainject(Fault("ModelInfer", before="writing", crash=True))
                with pytest.raises(tz.ServerUnavailable):
                    await model.infer({"INPUT0": X})
                await until(lambda: model.statistics().quarantined == 0)
                assert client.statistics().bytes_reserved == 4096
                await server.arestart()
                await client.wait_ready(timeout=20)
                await works(model)


async def test_a_server_that_is_away_does_not_make_them_more():
    async with FakeTriton({"fixed": MODELS["fixed"]}) as server:
        async with tz.Client(server.grpc_url) as client:
            async with client.model("fixed", slots=4) as model:
                await works(model)
                await server.ainject(Fault("ModelInfer", before="writing", crash=True))
                with pytest.raises(tz.ServerUnavailable):
                    await model.infer({"INPUT0": X})
                await until(lambda: model.statistics().quarantined == 0)
                for _ in range(5):
                    calls = [model.infer({"INPUT0": X}) for _ in range(4)]
                    for error in await asyncio.gather(*calls, return_exceptions=True):
                        assert isinstance(error, tz.ServerUnavailable)
                assert len(own_regions()) == 1
                await server.arestart()
                await client.wait_ready(timeout=20)
                await asyncio.gather(*(works(model) for _ in range(4)))
                assert model.statistics().available == 4


@pytest.mark.parametrize("before", ["handling", "answering"])
async def test_a_register_without_an_answer(fake, before):
    """It may have been done."""
    async with tz.Client(fake.grpc_url) as client, client.model("fixed", slots=1) as model:
        await works(model)
        fault = Fault("SystemSharedMemoryRegister", drop=True, before=before)
        await fake.ainject(fault, Fault(FORGET, drop=True, calls=1))
        with pytest.raises(tz.ServerUnavailable):
            await client.region(64)
        await until(lambda: len(own_regions()) == 1)
        await works(model)
        assert len((await fake.astate()).registered) == 1


async def test_a_close_without_an_answer_is_bounded(leaves_nothing):
    """The server takes connections and says nothing."""
    async with FakeTriton({"fixed": MODELS["fixed"]}) as server:
        client = tz.Client(server.grpc_url)
        model = await client.model("fixed", slots=2)
        await works(model)
        server.freeze()
        loop = asyncio.get_running_loop()
        start = loop.time()
        await client.aclose(timeout=0.2)
        assert loop.time() - start < 5
        assert own_regions() == set()
        server.thaw()
        async with tz.Client(server.grpc_url) as other:
            await other.reap()
        assert (await server.astate()).registered == []
        assert owner_files(server.grpc_url) == set()


async def test_a_close_while_a_slot_is_in_quarantine_is_bounded(fake):
    """The server goes on with a call whose connection broke, and does not let go."""
    client = tz.Client(fake.grpc_url)
    model = await client.model("fixed", slots=1)
    await works(model)
    await fake.ainject(
        Fault("ModelInfer", before="running", fail=("UNAVAILABLE", "Socket closed"), goes_on=True),
        Fault("ModelInfer", before="writing", hold=True),
    )
    with pytest.raises(tz.ServerUnavailable):
        await model.infer({"INPUT0": X})
    assert model.statistics().quarantined == 1
    loop = asyncio.get_running_loop()
    start = loop.time()
    await client.aclose(timeout=0.1)
    assert loop.time() - start < 5
    assert own_regions() == set()
    await fake.arelease()
    async with tz.Client(fake.grpc_url) as other:
        assert (await other.reap()).registrations == 1
    assert owner_files(fake.grpc_url) == set()


async def test_a_close_while_a_region_is_made_known_is_bounded(leaves_nothing, caplog):
    """The server may know it by then, so it is not the client's to forget."""
    async with FakeTriton({"fixed": MODELS["fixed"]}) as server:
        client = tz.Client(server.grpc_url)
        model = await client.model("fixed", slots=2)
        await works(model)
        await server.ainject(Fault("SystemSharedMemoryRegister", before="answering", hold=True))
        making = asyncio.create_task(client.region(64).__aenter__())
        await until(lambda: len(own_regions()) == 2)
        await until(lambda: len(server.state().registered) == 2)
        server.freeze()
        loop = asyncio.get_running_loop()
        start = loop.time()
        await client.aclose(timeout=0.2)
        assert loop.time() - start < 5
        await asyncio.wait([making])
        assert own_regions() == set()
        assert "2 regions stay registered" in caplog.text
        server.thaw()
        async with tz.Client(server.grpc_url) as other:
            assert (await other.reap()).registrations == 2
        assert (await server.astate()).registered == []
        assert owner_files(server.grpc_url) == set()
