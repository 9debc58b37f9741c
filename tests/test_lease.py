"""Leases: inputs and results in place, and arrays that outlive their lease."""

from __future__ import annotations

import asyncio
import gc
import threading

import numpy as np
import pytest
from support import needs_strings, own_files, own_regions, until

import triton_zerocopy as tz

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["system", "wire"])
def memory(request):
    return request.param


async def test_in_place(server, memory):
    async with tz.Client(server.grpc_url, memory=memory) as client:
        async with client.model("fixed") as model, model.lease() as lease:
            assert list(lease.inputs) == ["INPUT0"]
            for number in range(3):
                lease.inputs["INPUT0"][:] = number
                result = await lease.infer()
                np.testing.assert_array_equal(result["OUTPUT0"], np.full(4, number + 1))
            if memory == "system":
                assert result["OUTPUT0"].base is lease.inputs["INPUT0"].base, "one mapping"
                address = result["OUTPUT0"].__array_interface__["data"][0]
                assert address % 64 == 0


async def test_the_next_infer_overwrites_the_earlier_result(server):
    async with tz.Client(server.grpc_url) as client, client.model("fixed") as model:
        async with model.lease() as lease:
            lease.inputs["INPUT0"][:] = 1
            first = (await lease.infer())["OUTPUT0"]
            lease.inputs["INPUT0"][:] = 5
            second = (await lease.infer())["OUTPUT0"]
            assert np.shares_memory(first, second)
            assert first[0] == 6


async def test_mappings_end_with_the_lease(server, memory):
    async with tz.Client(server.grpc_url, memory=memory) as client:
        async with client.model("fixed") as model:
            async with model.lease() as lease:
                inputs = lease.inputs
                inputs["INPUT0"][:] = 0
                result = await lease.infer()
            for use in (
                lambda: lease.inputs,
                lambda: inputs["INPUT0"],
                lambda: list(inputs),
                lambda: result["OUTPUT0"],
                lambda: len(result),
            ):
                with pytest.raises(tz.LeaseReleased, match="lease"):
                    use()
            with pytest.raises(tz.LeaseReleased):
                await lease.infer()
            with pytest.raises(tz.LeaseReleased):
                await result.numpy("OUTPUT0")
            with pytest.raises(tz.LeaseReleased):
                await lease.__aenter__()
            assert result.model_name == "fixed"
            assert "released" in repr(lease)


async def test_a_kept_array_keeps_its_bytes_and_parks_its_slot(server):
    async with tz.Client(server.grpc_url) as client, client.model("fixed", slots=1) as model:
        async with model.lease() as lease:
            lease.inputs["INPUT0"][:] = 41
            kept = (await lease.infer())["OUTPUT0"][1:3]
        del lease
        assert model.statistics().parked == 1
        assert model.statistics().available == 1
        for number in range(5):
            async with model.lease() as lease:
                lease.inputs["INPUT0"][:] = number
                await lease.infer()
        np.testing.assert_array_equal(kept, [42, 42])
        assert len(own_regions()) == 2
        del kept
        await until(lambda: model.statistics().parked == 0)
        await until(lambda: len(own_regions()) == 1)


async def test_fifty_kept_leases(server):
    """Their bytes never change; the regions are slots plus kept leases, then slots again."""
    slots = 2
    async with tz.Client(server.grpc_url) as client, client.model("fixed", slots=slots) as model:
        kept = []
        for number in range(50):
            async with model.lease() as lease:
                lease.inputs["INPUT0"][:] = number
                result = await lease.infer()
                kept.append((lease.inputs["INPUT0"], result["OUTPUT0"]))
        del lease, result

        async def call(number):
            x = np.full(4, -number, np.float32)
            np.testing.assert_array_equal((await model.infer({"INPUT0": x}))["OUTPUT0"], x + 1)

        await asyncio.gather(*[call(number) for number in range(100)])
        assert model.statistics().parked == 50
        assert len(own_regions()) == 50 + slots
        for number, (given, got) in enumerate(kept):
            np.testing.assert_array_equal(given, np.full(4, number))
            np.testing.assert_array_equal(got, np.full(4, number + 1))
        kept.clear()
        del given, got
        await until(lambda: len(own_regions()) == slots)
        assert model.statistics().parked == 0


async def test_the_last_array_may_die_in_another_thread(server):
    async with tz.Client(server.grpc_url) as client, client.model("fixed", slots=1) as model:
        async with model.lease() as lease:
            box = [lease.inputs["INPUT0"]]
        assert model.statistics().parked == 1
        thread = threading.Thread(target=box.clear)
        thread.start()
        thread.join()
        await until(lambda: model.statistics().parked == 0)


async def test_memoryviews_and_dlpack_consumers_keep_the_slot(server):
    async with tz.Client(server.grpc_url) as client, client.model("fixed", slots=1) as model:
        async with model.lease() as lease:
            view = memoryview(lease.inputs["INPUT0"])
            consumer = np.from_dlpack(lease.inputs["INPUT0"])
        assert model.statistics().parked == 1
        del view
        gc.collect()
        await asyncio.sleep(0)
        assert model.statistics().parked == 1
        assert consumer.shape == (4,)
        del consumer
        await until(lambda: model.statistics().parked == 0)


async def test_arrays_outlive_the_client(server):
    async with tz.Client(server.grpc_url) as client, client.model("fixed") as model:
        async with model.lease() as lease:
            lease.inputs["INPUT0"][:] = 7
            kept = (await lease.infer())["OUTPUT0"]
    assert own_files() == set()
    np.testing.assert_array_equal(kept, np.full(4, 8))
    kept[:] = 1
    assert client.statistics().bytes_reserved == 4096, "it is still mapped"
    del kept
    assert client.statistics().bytes_reserved == 0


async def test_fewer_rows_than_leased(server, memory):
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    async with tz.Client(server.grpc_url, memory=memory) as client:
        async with client.model("rows") as model, model.lease({"INPUT0": (4, 3)}) as lease:
            lease.inputs["INPUT0"][:] = x
            for count in (4, 2, 1):
                result = await lease.infer(shapes={"INPUT0": (count, 3)})
                np.testing.assert_array_equal(result["OUTPUT0"], x[:count] + 1)
                assert result["SUM"].shape == (count, 1)
            for shape in [(5, 3), (2, 2), (2,), (0, 3)]:
                with pytest.raises(tz.InputError):
                    await lease.infer(shapes={"INPUT0": shape})
            with pytest.raises(tz.InputError, match="not leased"):
                await lease.infer(shapes={"NOPE": (1, 3)})


async def test_a_lease_is_sized_by_default(server):
    async with tz.Client(server.grpc_url) as client:
        async with client.model("rows") as model, model.lease() as lease:
            assert lease.inputs["INPUT0"].shape == (4, 3), "max_batch_size rows"
        async with client.model("add_one") as model:
            with pytest.raises(tz.InputError, match="pass shapes="):
                model.lease()
        async with client.model("add_one", shapes={"INPUT0": (10,)}) as model:
            assert len(own_regions()) >= 4, "all slots are there before the first use"
            async with model.lease() as lease:
                assert lease.inputs["INPUT0"].shape == (10,)
        async with client.model("rows", shapes={"INPUT0": (2, 3)}) as model:
            async with model.lease() as lease:
                assert lease.inputs["INPUT0"].shape == (2, 3)


async def test_inputs_given_to_infer(server, memory):
    """Leased inputs are copied to their place, others go inside the message."""
    a, b = np.arange(4, dtype=np.float32), np.ones(4, np.float32)
    async with tz.Client(server.grpc_url, memory=memory) as client:
        async with client.model("optional") as model, model.lease({"A": (4,)}) as lease:
            lease.inputs["A"][:] = a
            np.testing.assert_array_equal((await lease.infer())["OUTPUT0"], a)
            np.testing.assert_array_equal((await lease.infer({"B": b}))["OUTPUT0"], a + b)
            result = await lease.infer({"A": b, "B": b})
            np.testing.assert_array_equal(result["OUTPUT0"], b + b)
            np.testing.assert_array_equal(lease.inputs["A"], b)


@needs_strings
async def test_strings_given_to_infer(server, memory):
    async with tz.Client(server.grpc_url, memory=memory) as client:
        async with client.model("shout") as model, model.lease() as lease:
            for _ in range(2):
                result = await lease.infer({"TEXT": [["a"], ["b"]]})
                assert result["LOUD"].ravel().tolist() == [b"AA", b"BB"]


async def test_variable_outputs_of_a_lease(server, memory):
    async with tz.Client(server.grpc_url, memory=memory) as client:
        async with client.model("add_one") as model:
            for round_ in range(3):
                async with model.lease({"INPUT0": (100,)}) as lease:
                    lease.inputs["INPUT0"][:] = round_
                    result = await lease.infer()
                    np.testing.assert_array_equal(result["OUTPUT0"], np.full(100, round_ + 1))
                    is_inline = memory == "wire" or round_ == 0
                    assert result["OUTPUT0"].flags.writeable is not is_inline


async def test_one_call_of_a_lease_at_a_time(server):
    async with tz.Client(server.grpc_url) as client, client.model("slow", slots=1) as model:
        async with model.lease() as lease:
            lease.inputs["INPUT0"][:] = 0.2
            first = asyncio.create_task(lease.infer())
            await until(lambda: model.statistics().in_flight == 1)
            with pytest.raises(tz.RegionBusy, match="not been answered"):
                await lease.infer()
            await first
            with pytest.raises(tz.InferTimeout):
                await lease.infer(timeout=0.02)
            with pytest.raises(tz.RegionBusy):
                await lease.infer()
            await until(lambda: model.statistics().in_flight == 0)
            result = await lease.infer()
            assert result["OUTPUT0"][0] == np.float32(1.2)


async def test_waiting_for_a_lease_times_out(server):
    async with tz.Client(server.grpc_url) as client, client.model("fixed", slots=1) as model:
        async with model.lease():
            with pytest.raises(tz.InferTimeout, match="no slot within 0.05"):
                async with model.lease(timeout=0.05):
                    pass
        async with model.lease(timeout=1):
            pass
        assert model.statistics().available == 1


async def test_a_body_that_raises_gives_the_slot_back(server):
    async with tz.Client(server.grpc_url) as client, client.model("fixed", slots=1) as model:
        with pytest.raises(KeyError):
            async with model.lease() as lease:
                lease.inputs["NOPE"]
        assert model.statistics().available == 1
        assert model.statistics().parked == 0
