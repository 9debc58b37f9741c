"""`Model.infer` through shared memory and over the wire, against a real server."""

from __future__ import annotations

import asyncio
import weakref

import ml_dtypes
import numpy as np
import pytest
from models import NUMERIC

import triton_zerocopy as tz
from triton_zerocopy._datatypes import DTYPES

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["system", "wire"])
def memory(request):
    return request.param


def same(one, other):
    return (
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )


def sample(name, shape, seed=0):
    rng = np.random.default_rng(seed)
    if name == "BOOL":
        return rng.integers(0, 2, shape).astype(bool)
    dtype = DTYPES[name]
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    return rng.standard_normal(shape).astype(dtype)


async def test_copies_in_and_out(server, memory):
    x = np.arange(100_000, dtype=np.float32)
    async with tz.Client(server.grpc_url, memory=memory) as client:
        async with client.model("add_one") as model:
            assert model.memory == memory
            for _ in range(3):  # inline first, then through shared memory
                result = await model.infer({"INPUT0": x})
                assert same(result["OUTPUT0"], x + 1)
                assert result["OUTPUT0"].flags.writeable
                assert result["OUTPUT0"].base is None or memory == "wire"
            assert (result.model_name, result.model_version) == ("add_one", "1")
            assert same(await result.numpy("OUTPUT0"), x + 1)


async def test_large_tensors_are_copied_off_the_loop(server):
    x = np.arange(12 << 20, dtype=np.uint8).view(np.float32)
    async with tz.Client(server.grpc_url) as client, client.model("add_one") as model:
        for _ in range(2):
            result = await model.infer({"INPUT0": x})
            np.testing.assert_array_equal(result["OUTPUT0"], x + 1)


async def test_every_numeric_datatype(server, memory):
    async with tz.Client(server.grpc_url, memory=memory) as client, client.model("echo") as model:
        inputs = {name: sample(name, (5, 2)) for name in NUMERIC}
        for _ in range(2):
            result = await model.infer(inputs)
            for name in NUMERIC:
                assert same(result["OUT_" + name], inputs[name]), name
        assert result["OUT_BF16"].dtype == ml_dtypes.bfloat16


async def test_any_layout_and_byte_order(server, memory):
    base = {name: sample(name, (4, 6), seed=1) for name in NUMERIC}
    inputs = {}
    for index, (name, array) in enumerate(base.items()):
        if index % 3 == 0:
            inputs[name] = array[:, ::3]
        elif index % 3 == 1:
            inputs[name] = np.asfortranarray(array)[::-1, 1:5:3]
        else:
            inputs[name] = array.T.copy().T[:, :2]
        if array.dtype.itemsize > 1 and name != "BF16":
            inputs[name] = inputs[name].astype(array.dtype.newbyteorder(">"))
    async with tz.Client(server.grpc_url, memory=memory) as client, client.model("echo") as model:
        for _ in range(2):
            result = await model.infer(inputs)
            for name in NUMERIC:
                expected = inputs[name].astype(DTYPES[name])
                assert same(result["OUT_" + name], expected), name


async def test_empty_tensors_go_inline(server, memory):
    async with tz.Client(server.grpc_url, memory=memory) as client, client.model("echo") as model:
        inputs = {name: sample(name, (0, 2) if name != "FP32" else (3, 2)) for name in NUMERIC}
        for _ in range(2):
            result = await model.infer(inputs)
            assert result["OUT_INT8"].shape == (0, 2)
            assert same(result["OUT_FP32"], inputs["FP32"])


async def test_output_subset_and_options(server, memory):
    a, b = np.arange(4, dtype=np.int32), np.full(4, 7, np.int32)
    async with tz.Client(server.grpc_url, memory=memory) as client, client.model("two") as model:
        result = await model.infer(
            {"A": a, "B": b},
            outputs=["DIFFERENCE"],
            request_id="r-1",
            priority=1,
            parameters={"text": "x", "flag": True, "number": 3, "ratio": 0.5},
        )
        assert list(result) == ["DIFFERENCE"]
        assert result.request_id == "r-1"
        np.testing.assert_array_equal(result["DIFFERENCE"], a - b)
        both = await model.infer({"A": a, "B": b}, outputs=["DIFFERENCE", "SUM"])
        assert list(both) == ["DIFFERENCE", "SUM"]
        np.testing.assert_array_equal(both["SUM"], a + b)


async def test_out_receives_into_the_callers_arrays(server, memory):
    a, b = np.arange(4, dtype=np.int32), np.full(4, 7, np.int32)
    out = np.zeros((2, 4), np.int32)
    async with tz.Client(server.grpc_url, memory=memory) as client, client.model("two") as model:
        result = await model.infer({"A": a, "B": b}, out={"SUM": out[0], "DIFFERENCE": out[1]})
        assert np.shares_memory(result["SUM"], out)
        np.testing.assert_array_equal(out, [a + b, a - b])
        for wrong in (np.zeros(4, np.int64), np.zeros(5, np.int32), [0] * 4):
            with pytest.raises(tz.InputError, match="out='SUM'"):
                await model.infer({"A": a, "B": b}, out={"SUM": wrong})
        with pytest.raises(tz.InputError, match="out="):
            await model.infer({"A": a, "B": b}, out={"NOPE": out[0]})
        read_only = np.zeros(4, np.int32)
        read_only.flags.writeable = False
        with pytest.raises(tz.InputError, match="read-only"):
            await model.infer({"A": a, "B": b}, out={"SUM": read_only})


async def test_a_partial_out_leaves_other_outputs_new(server):
    a, b = np.arange(4, dtype=np.int32), np.full(4, 7, np.int32)
    out = np.zeros(4, np.int32)
    async with tz.Client(server.grpc_url) as client, client.model("two") as model:
        result = await model.infer({"A": a, "B": b}, out={"SUM": out})
        assert result["SUM"] is out
        np.testing.assert_array_equal(result["DIFFERENCE"], a - b)


async def test_python_values(server, memory):
    async with tz.Client(server.grpc_url, memory=memory) as client:
        model = await client.model("two")
        result = await model.infer({"A": [1, 2, 3, 4], "B": (10, 20, 30, 40)})
        np.testing.assert_array_equal(result["SUM"], [11, 22, 33, 44])
        count = await client.model("count")
        result = await count.infer({"N": 3})
        np.testing.assert_array_equal(result["OUTPUT0"], [0, 1, 2])
        fixed = await client.model("fixed")
        result = await fixed.infer({"INPUT0": [1, 2.5, 3, 4]})
        np.testing.assert_array_equal(result["OUTPUT0"], np.array([2, 3.5, 4, 5], np.float32))


async def test_dlpack_producers(server, memory):
    class Producer:
        """Something that only speaks DLPack."""

        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    class OnDevice(Producer):
        def __dlpack_device__(self):
            return (2, 0)

    x = np.arange(4, dtype=np.float32)
    async with tz.Client(server.grpc_url, memory=memory) as client, client.model("fixed") as model:
        result = await model.infer({"INPUT0": Producer(x)})
        np.testing.assert_array_equal(result["OUTPUT0"], x + 1)
        with pytest.raises(tz.InputError, match="memory of a GPU.*memory='cuda:N'"):
            await model.infer({"INPUT0": OnDevice(x)})


async def test_an_optional_input_may_be_left_out(server, memory):
    a, b = np.arange(4, dtype=np.float32), np.ones(4, np.float32)
    async with tz.Client(server.grpc_url, memory=memory) as client:
        async with client.model("optional") as model:
            assert model.inputs["B"].optional
            np.testing.assert_array_equal((await model.infer({"A": a}))["OUTPUT0"], a)
            result = await model.infer({"A": a, "B": b})
            np.testing.assert_array_equal(result["OUTPUT0"], a + b)


async def test_queue_timeout_is_obeyed_by_the_server(server):
    """The one timeout the server knows; the request never runs."""
    x = np.zeros((1, 16), np.float32)
    blocker = np.full((1, 16), 0.4, np.float32)
    async with tz.Client(server.grpc_url) as client, client.model("queued") as model:
        await model.infer({"INPUT0": x})
        first = asyncio.create_task(model.infer({"INPUT0": blocker}))
        second = asyncio.create_task(model.infer({"INPUT0": blocker}))
        while model.statistics().in_flight < 2:
            await asyncio.sleep(0)
        with pytest.raises(tz.InferenceError, match="timeout") as raised:
            await model.infer({"INPUT0": x}, queue_timeout=0.05)
        assert raised.value.status() == "StatusCode.UNAVAILABLE"
        assert model.statistics().quarantined == 0, "it never ran, so its slot is fine"
        await asyncio.gather(first, second)


async def test_errors_of_the_model_keep_their_text(server, memory):
    from tritonclient.utils import InferenceServerException

    async with tz.Client(server.grpc_url, memory=memory) as client, client.model("fail") as model:
        with pytest.raises(InferenceServerException, match="this model never works") as raised:
            await model.infer({"INPUT0": np.zeros(3, np.float32)}, request_id="r-9")
        error = raised.value
        assert isinstance(error, tz.InferenceError)
        assert (error.model, error.request_id) == ("fail", "r-9")
        assert "model 'fail', request 'r-9'" in str(error)
        assert model.statistics().available == 4


async def test_many_callers_share_the_slots(server):
    async with tz.Client(server.grpc_url) as client, client.model("fixed", slots=3) as model:

        async def call(number):
            x = np.full(4, number, np.float32)
            result = await model.infer({"INPUT0": x})
            assert same(result["OUTPUT0"], x + 1)

        await asyncio.gather(*[call(number) for number in range(200)])
        statistics = model.statistics()
        assert (statistics.available, statistics.waiting) == (3, 0)
        assert client.statistics().bytes_reserved == 3 * 4096


async def test_pool_full_is_refused_at_once(server):
    x = np.full(16, 0.3, np.float32)
    async with tz.Client(server.grpc_url) as client:
        async with client.model("slow", slots=1, max_waiting=0) as model:
            first = asyncio.create_task(model.infer({"INPUT0": x}))
            while model.statistics().in_flight < 1:
                await asyncio.sleep(0)
            with pytest.raises(tz.PoolExhausted, match="max_waiting=0"):
                await model.infer({"INPUT0": x})
            await first


async def test_every_call_is_checked_whatever_was_called_before(server):
    """A call like the one before is not checked again; what is not like it is."""
    good = np.arange(4, dtype=np.float32)
    wrong = {
        "another datatype": {"INPUT0": good.astype(np.float64)},
        "another shape": {"INPUT0": good[:3]},
        "more dimensions": {"INPUT0": good.reshape(2, 2)},
        "objects": {"INPUT0": good.astype(object)},
        "another name": {"INPUT1": good},
        "one more": {"INPUT0": good, "INPUT1": good},
        "none": {},
    }
    async with tz.Client(server.grpc_url) as client, client.model("fixed", slots=1) as model:
        for name, inputs in wrong.items():
            for value in (good, good.astype(">f4"), np.repeat(good, 2)[::2]):
                assert same((await model.infer({"INPUT0": value}))["OUTPUT0"], good + 1)
            for _ in range(2):
                with pytest.raises(tz.InputError):
                    await model.infer(inputs)
                    pytest.fail(name)
        with pytest.raises(tz.InputError, match="INPUT0"):
            await model.infer({"INPUT0": good}, outputs=["INPUT0"])


async def test_a_slot_keeps_nothing_of_the_callers(server):
    x = np.zeros(4, np.float32)
    async with tz.Client(server.grpc_url) as client, client.model("fixed", slots=1) as model:
        for _ in range(3):
            result = await model.infer({"INPUT0": x})
        kept = [weakref.ref(x), weakref.ref(result["OUTPUT0"])]
        del x, result
        assert [ref() for ref in kept] == [None, None]


async def test_some_outputs_are_not_taken_for_all_of_them(server):
    rows = np.ones((2, 3), np.float32)
    async with tz.Client(server.grpc_url) as client, client.model("rows", slots=1) as model:
        for _ in range(2):
            assert list(await model.infer({"INPUT0": rows}, outputs=["SUM"])) == ["SUM"]
            assert list(await model.infer({"INPUT0": rows})) == ["OUTPUT0", "SUM"]
