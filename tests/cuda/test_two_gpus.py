"""Several GPUs in one client, and tensors that are on another one."""

from __future__ import annotations

import asyncio
from uuid import UUID

import numpy as np
import pytest
from emulated_cuda import arrays
from emulated_cuda.server import CudaServer
from models import MODELS

import triton_zerocopy as tz

pytestmark = [pytest.mark.anyio, pytest.mark.emulated]

X = np.arange(4, dtype=np.float32)


async def test_a_pool_for_each(two_gpu_server):
    async with tz.Client(two_gpu_server.grpc_url) as client:
        async with (
            client.model("fixed", memory="cuda:0") as first,
            client.model("fixed", memory="cuda:1") as second,
            client.model("fixed", memory="system") as host,
        ):
            assert [model.memory for model in (first, second, host)] == [
                "cuda:0",
                "cuda:1",
                "system",
            ]
            results = await asyncio.gather(
                *(model.infer({"INPUT0": X + n}) for n in range(5) for model in (first, second))
            )
            for n, result in enumerate(results):
                assert np.array_equal(await result.numpy("OUTPUT0"), X + n // 2 + 1)
            assert {result["OUTPUT0"].device_id for result in results} == {0, 1}
            # From one to the other: across, never misread.
            there = (await first.infer({"INPUT0": X}))["OUTPUT0"]
            result = await second.infer({"INPUT0": there})
            assert result["OUTPUT0"].device_id == 1
            assert np.array_equal(await result.numpy("OUTPUT0"), X + 2)


@pytest.mark.parametrize("peers", [False, True])
@pytest.mark.parametrize("way", ["dlpack", "interface"])
async def test_a_tensor_of_another_gpu(two_gpu_server, emulation, peers, way):
    emulation.set_peers(peers)
    async with (
        tz.Client(two_gpu_server.grpc_url) as client,
        client.model("add_one", memory="cuda:0") as model,
    ):
        tensor = arrays.from_numpy(np.arange(40, dtype=np.float32), device=1)
        for view, expected in (
            (tensor, np.arange(40)),
            (tensor[4:9], np.arange(4, 9)),
            (tensor[::3], np.arange(0, 40, 3)),
            (tensor[:0], np.arange(0)),
        ):
            given = arrays.InterfaceOnly(view) if way == "interface" else view
            result = await model.infer({"INPUT0": given})
            assert result["OUTPUT0"].device_id == 0
            assert np.array_equal(await result.numpy("OUTPUT0"), expected + 1)


async def test_its_producers_queue_comes_first(two_gpu_server, emulation):
    async with (
        tz.Client(two_gpu_server.grpc_url) as client,
        client.model("fixed", memory="cuda:0") as model,
    ):
        stream = arrays.Stream(device=1)
        with arrays.current_stream(stream):
            tensor = arrays.from_numpy(X, device=1)
            with emulation.hold(int(stream)) as gate:
                tensor.fill_(9)
                call = asyncio.create_task(model.infer({"INPUT0": tensor}))
                for _ in range(20):
                    await asyncio.sleep(0.001)
                assert not call.done()
                gate.open()
                result = await call
        assert np.array_equal(await result.numpy("OUTPUT0"), np.full(4, 10))


async def test_out_on_another_gpu(two_gpu_server):
    async with (
        tz.Client(two_gpu_server.grpc_url) as client,
        client.model("fixed", memory="cuda:0") as model,
    ):
        place = arrays.from_numpy(np.zeros(4, np.float32), device=1)
        result = await model.infer({"INPUT0": X}, out={"OUTPUT0": place})
        assert result["OUTPUT0"] is place
        assert np.array_equal(place.numpy(), X + 1)
        assert np.array_equal(await result.numpy("OUTPUT0"), X + 1)


async def test_adopting_on_the_second(two_gpu_server):
    tensor = arrays.from_numpy(np.arange(1 << 19, dtype=np.float32), device=1)
    async with tz.Client(two_gpu_server.grpc_url) as client:
        for lender in (tensor[:4], arrays.InterfaceOnly(tensor[:4])):
            async with client.adopt(lender) as ref:
                assert ref.region.device_id == 1
                result = await client.infer("fixed", {"INPUT0": ref})
                assert np.array_equal(result["OUTPUT0"], X + 1)


async def test_a_server_that_numbers_them_otherwise(emulated_library, tmp_path, emulation):
    """Its GPU 0 is our GPU 1; without peer access the wrong one cannot even be opened."""
    emulation.set_devices(2)
    uuids = [f"GPU-{UUID(bytes=emulation.device_uuid(device))}" for device in (0, 1)]
    models = {"fixed": MODELS["fixed"]}
    with CudaServer(
        models, library=emulated_library, directory=tmp_path, devices=2, order=(1, 0)
    ) as swapped:
        url = swapped.grpc_url
        async with tz.Client(url) as client:
            with pytest.raises(tz.ServerCannotSeeMemory, match="server_devices"):
                await client.model("fixed", memory="cuda:0")
        for mapping in ({0: 1, 1: 0}, uuids[::-1]):
            async with tz.Client(url, server_devices=mapping) as client:
                for device in (0, 1):
                    async with client.model("fixed", memory=f"cuda:{device}") as model:
                        result = await model.infer({"INPUT0": X})
                        assert np.array_equal(await result.numpy("OUTPUT0"), X + 1)
        async with tz.Client(url, server_devices=uuids[1:]) as client:
            await (await client.model("fixed", memory="cuda:1")).aclose()
            with pytest.raises(tz.CudaError, match="not one of server_devices"):
                await client.model("fixed", memory="cuda:0")
        async with tz.Client(url, server_devices=[uuid[:12] for uuid in uuids]) as client:
            with pytest.raises(tz.CudaError, match="not one of server_devices"):  # which?
                await client.model("fixed", memory="cuda:0")
        for wrong in ("GPU-1", [1], {0: "1"}, {0: -1}):
            with pytest.raises(tz.InputError, match="server_devices"):
                tz.Client(url, server_devices=wrong)
