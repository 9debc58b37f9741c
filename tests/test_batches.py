"""Batches: split over slots, in order, without joining arrays; lists of rows."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import triton_zerocopy as tz

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["system", "wire"])
def memory(request):
    return request.param


@pytest.mark.parametrize("count", [1, 4, 5, 8, 23])
async def test_large_batches_come_back_in_order(server, memory, count):
    x = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    async with tz.Client(server.grpc_url, memory=memory) as client:
        async with client.model("rows", slots=2) as model:
            assert model.max_batch_size == 4
            result = await model.infer({"INPUT0": x}, request_id="all")
            np.testing.assert_array_equal(result["OUTPUT0"], x + 1)
            np.testing.assert_array_equal(result["SUM"], x.sum(axis=1, keepdims=True))
            assert result.request_id == "all"
            only = await model.infer({"INPUT0": x}, outputs=["SUM"])
            assert list(only) == ["SUM"]
            assert model.statistics().available == 2


async def test_variable_outputs_of_a_split_batch(server, memory):
    x = np.arange(10 * 7, dtype=np.float32).reshape(10, 7)
    async with tz.Client(server.grpc_url, memory=memory) as client:
        async with client.model("wide_rows", slots=2) as model:
            for _ in range(2):
                result = await model.infer({"INPUT0": x})
                np.testing.assert_array_equal(result["OUTPUT0"], x + 1)


async def test_out_of_a_split_batch(server):
    x = np.arange(10 * 3, dtype=np.float32).reshape(10, 3)
    out = np.zeros((10, 3), np.float32)
    async with tz.Client(server.grpc_url) as client, client.model("rows") as model:
        result = await model.infer({"INPUT0": x}, out={"OUTPUT0": out})
        assert np.shares_memory(result["OUTPUT0"], out)
        np.testing.assert_array_equal(out, x + 1)
        np.testing.assert_array_equal(result["SUM"], x.sum(axis=1, keepdims=True))
        with pytest.raises(tz.InputError, match="out='OUTPUT0'"):
            await model.infer({"INPUT0": x}, out={"OUTPUT0": out[:9]})


@pytest.mark.parametrize("count", [2, 9])
async def test_rows_that_lie_apart(server, memory, count):
    rows = [np.arange(6, dtype=np.float32)[::2] + index for index in range(count)]
    rows[1] = rows[1].astype(">f4")
    async with tz.Client(server.grpc_url, memory=memory) as client:
        async with client.model("rows") as model:
            result = await model.infer({"INPUT0": rows})
            np.testing.assert_array_equal(result["OUTPUT0"], np.stack(rows) + 1)
            result = await model.infer({"INPUT0": tuple(rows)})
            np.testing.assert_array_equal(result["OUTPUT0"], np.stack(rows) + 1)


async def test_a_split_waits_in_line_once(server):
    """max_waiting counts callers, not the parts of a batch."""
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    async with tz.Client(server.grpc_url) as client:
        async with client.model("rows", slots=2, max_waiting=0) as model:
            result = await model.infer({"INPUT0": x})
            np.testing.assert_array_equal(result["OUTPUT0"], x + 1)


async def test_an_error_in_a_part_comes_when_all_slots_are_back(server):
    """BYTES rows that the model cannot take make one part fail; nothing stays in use."""
    x = np.zeros((9, 3), np.float32)
    async with tz.Client(server.grpc_url) as client, client.model("rows", slots=2) as model:
        await model.infer({"INPUT0": x})
        async with client.region(64) as region:
            part = region.tensor((4, 3), "FP32")
            await region.write(x[:4])
            result = await model.infer({"INPUT0": part})
            np.testing.assert_array_equal(result["OUTPUT0"], x[:4] + 1)
        with pytest.raises(tz.RegionClosed):
            await model.infer({"INPUT0": part})
        assert model.statistics().available == 2


async def test_a_cancelled_split_leaves_no_slot_behind(server):
    x = np.full((12, 16), 0.05, np.float32)
    async with tz.Client(server.grpc_url) as client, client.model("queued", slots=2) as model:
        task = asyncio.create_task(model.infer({"INPUT0": x}))
        while model.statistics().in_flight < 2:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        result = await model.infer({"INPUT0": x[:2]})
        np.testing.assert_array_equal(result["OUTPUT0"], x[:2] + 1)


async def test_rows_of_a_region_tensor_are_split_in_place(server):
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    async with tz.Client(server.grpc_url) as client, client.model("rows", slots=2) as model:
        async with client.region(x.nbytes) as region:
            await region.write(x)
            result = await model.infer({"INPUT0": region.tensor(x.shape, "FP32")})
            np.testing.assert_array_equal(result["OUTPUT0"], x + 1)
