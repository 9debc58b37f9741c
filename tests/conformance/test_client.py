"""This library's own client against both, on TCP and on Unix sockets."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from models import MODELS, NUMERIC
from support import needs_strings, until, url_of

import triton_zerocopy as tz

pytestmark = pytest.mark.anyio

X = np.arange(4, dtype=np.float32)


@pytest.fixture(params=["grpc", "http", "grpc-unix", "http-unix"])
def transport(request):
    return request.param


@pytest.fixture
def on_unix(transport):
    return transport.endswith("-unix")


@pytest.fixture(params=["system", "wire"])
def memory(request):
    return request.param


async def test_infer(server, memory, transport):
    x = np.arange(100_000, dtype=np.float32)
    async with tz.Client(url_of(server, transport), memory=memory) as client:
        async with client.model("add_one") as model:
            for _ in range(3):
                result = await model.infer({"INPUT0": x}, request_id="me")
                np.testing.assert_array_equal(result["OUTPUT0"], x + 1)
            assert (result.model_name, result.model_version, result.request_id) == (
                "add_one", "1", "me",
            )  # fmt: skip


async def test_lease(server, memory, transport):
    async with tz.Client(url_of(server, transport), memory=memory) as client:
        async with client.model("fixed") as model, model.lease() as lease:
            for number in range(3):
                lease.inputs["INPUT0"][:] = number
                result = await lease.infer()
                np.testing.assert_array_equal(result["OUTPUT0"], np.full(4, number + 1))


async def test_batches(server, memory, transport):
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    async with tz.Client(url_of(server, transport), memory=memory) as client:
        async with client.model("rows", slots=2) as model:
            result = await model.infer({"INPUT0": x})
            np.testing.assert_array_equal(result["OUTPUT0"], x + 1)
            np.testing.assert_array_equal(result["SUM"], x.sum(axis=1, keepdims=True))


@needs_strings
async def test_strings(server, memory, transport):
    async with tz.Client(url_of(server, transport), memory=memory) as client:
        async with client.model("shout") as model:
            for _ in range(2):
                result = await model.infer({"TEXT": [["ab"], ["cé"]]})
                assert result["LOUD"].tolist() == [[b"ABAB"], ["Cé".encode() * 2]]


async def test_every_datatype(server, memory, transport):
    rng = np.random.default_rng(3)
    async with tz.Client(url_of(server, transport), memory=memory) as client:
        async with client.model("echo") as model:
            inputs = {
                name: rng.integers(0, 2, (3, 2)).astype(model.inputs[name].dtype)
                for name in NUMERIC
            }
            for _ in range(2):
                result = await model.infer(inputs)
                for name in NUMERIC:
                    assert result[f"OUT_{name}"].tobytes() == inputs[name].tobytes(), name


async def test_many_at_once(server, transport):
    async with (
        tz.Client(url_of(server, transport)) as client,
        client.model("fixed", slots=3) as model,
    ):
        results = await asyncio.gather(*[model.infer({"INPUT0": X * n}) for n in range(50)])
        for n, result in enumerate(results):
            np.testing.assert_array_equal(result["OUTPUT0"], X * n + 1)


async def test_an_output_that_outgrows_its_slot(server, transport):
    async with tz.Client(url_of(server, transport)) as client:
        async with client.model("count", output_bytes={"OUTPUT0": 64}) as model:
            with pytest.raises(tz.CapacityError) as raised:
                await model.infer({"N": np.array([5000], np.int32)})
            assert (raised.value.needed, raised.value.model_ran) == (20_000, True)
            result = await model.infer({"N": np.array([5000], np.int32)})
            assert result["OUTPUT0"].shape == (5000,)


async def test_region(server, transport):
    async with tz.Client(url_of(server, transport)) as client, client.region(8192) as region:
        region.array((4,), "float32")[:] = X
        out = region.tensor((4,), "FP32", offset=4096)
        await client.infer(
            "fixed", {"INPUT0": region.tensor((4,), "FP32")}, outputs={"OUTPUT0": out}
        )
        np.testing.assert_array_equal(region.array((4,), "float32", offset=4096), X + 1)


async def test_a_timeout_releases_the_caller_and_not_the_slot(server, transport):
    async with (
        tz.Client(url_of(server, transport)) as client,
        client.model("slow", slots=1) as model,
    ):
        x = np.zeros(16, np.float32)
        await model.infer({"INPUT0": x})
        with pytest.raises(tz.InferTimeout):
            await model.infer({"INPUT0": np.full(16, 0.3, np.float32)}, timeout=0.02)
        assert model.statistics().in_flight == 1
        result = await model.infer({"INPUT0": x})
        np.testing.assert_array_equal(result["OUTPUT0"], x + 1)
        await until(lambda: model.statistics().available == 1)


async def test_errors_of_the_server(server, transport):
    async with tz.Client(url_of(server, transport)) as client:
        with pytest.raises(tz.InferenceError, match="'nope' is not found"):
            await client.model("nope")
        with pytest.raises(tz.InputError, match="decoupled"):
            await client.model("stream")
        async with client.model("fail") as model:
            with pytest.raises(tz.InferenceError, match="ValueError: this model never works"):
                await model.infer({"INPUT0": X})


async def test_metadata_through_tritonclient(server, transport):
    async with tz.Client(url_of(server, transport)) as client:
        if transport == "http-unix":
            with pytest.raises(tz.InputError, match="Unix"):
                client.triton
        else:
            assert client.triton is client.triton
            found = await client.triton.get_server_metadata()
            config = await client.triton.get_model_config("rows")
            if transport == "http":
                assert (found["version"], config["max_batch_size"]) == (server.version, 4)
            else:
                assert (found.version, config.config.max_batch_size) == (server.version, 4)
        model = await client.model("optional")
        assert [model.inputs[name].optional for name in "AB"] == [False, True]
        await model.aclose()


@pytest.mark.parametrize("on_unix", [False, True], ids=["tcp", "unix"])
async def test_a_server_that_restarts_is_used_again(make_server):
    """Its regions are registered anew; the call that met it dead may fail.

    Clients of both protocols are there at once, as starting a server takes long.
    """
    async with make_server({"fixed": MODELS["fixed"]}) as server:
        async with (
            tz.Client(url_of(server, "grpc")) as first,
            tz.Client(url_of(server, "http")) as second,
            first.model("fixed", slots=2) as one,
            second.model("fixed", slots=2) as other,
        ):
            for model in (one, other):
                await model.infer({"INPUT0": X})
            await server.akill()
            for model in (one, other):
                with pytest.raises(tz.ServerUnavailable):
                    await model.infer({"INPUT0": X})
            await server.arestart()
            for client, model in ((first, one), (second, other)):
                await client.wait_ready(timeout=20)
                for _ in range(3):
                    result = await model.infer({"INPUT0": X})
                    np.testing.assert_array_equal(result["OUTPUT0"], X + 1)
        await server.akill()
