"""The same promises as in tests/chaos, with slots in the memory of an emulated GPU.

Its streams do nothing before they must, and its memory is given back only with proof; the fixtures
of all tests here see what is left on either side.
"""

from __future__ import annotations

import asyncio

import pytest
from chaos.load import Load
from chaos.proxy import Proxy
from chaos.served import work_model
from emulated_cuda.server import CudaServer

import triton_zerocopy as tz

pytestmark = [pytest.mark.anyio, pytest.mark.emulated, pytest.mark.once]


@pytest.fixture
def load(request):
    return Load(seed=request.node.name)


@pytest.fixture(scope="module")
def _unruly(emulated_library, tmp_path_factory):
    directory = tmp_path_factory.mktemp("unruly")
    models = {"work": work_model()}
    with CudaServer(models, library=emulated_library, directory=directory) as server:
        yield server
        server.kill()


@pytest.fixture
def unruly(_unruly, leaves_nothing, emulation):
    leaves_nothing.watch(_unruly)
    yield _unruly
    assert _unruly.regions() == {}
    assert _unruly.memory.live_ipc() == 0
    leaves_nothing.accept_children()


def on_gpu(url):
    return tz.Client(url, memory="cuda:0")


async def test_callers_who_leave(unruly, load):
    async with on_gpu(unruly.grpc_url) as client, client.model("work", slots=4) as model:
        load.start(model)
        for end in ("ok", "cancelled", "timed out"):
            await load.some(end, 40)
        await load.stop()
        await load.at_peace(model)


async def test_killed_and_restarted(unruly, load):
    async with on_gpu(unruly.grpc_url) as client, client.model("work", slots=4) as model:
        load.start(model)
        await load.some("ok", 20)
        while not model.statistics().in_flight:
            await asyncio.sleep(0)
        await unruly.akill()
        await load.some("unavailable", 10)
        await unruly.arestart()
        await load.some("ok", 20)
        await load.stop()
        await load.at_peace(model)


@pytest.mark.parametrize("by", ["reset", "finish"])
async def test_cut_in_mid_call(unruly, load, by):
    with Proxy(unruly.grpc_url) as proxy:
        async with on_gpu(proxy.url) as client, client.model("work", slots=4) as model:
            load.start(model, longest=0.05)
            for _ in range(4):
                await load.some("ok", 10)
                while model.statistics().in_flight < 2:
                    await asyncio.sleep(0)
                proxy.cut(by)
            proxy.black_hole()
            await load.some("timed out", 5)
            proxy.heal(by)
            await load.some("ok", 10)
            await load.stop()
            await load.at_peace(model)
    assert load.ends["unavailable"]


async def test_somebody_unregisters_everything(unruly, load):
    async with on_gpu(unruly.grpc_url) as client, client.model("work", slots=4) as model:
        load.start(model, tz.InferenceError)
        for _ in range(10):
            await load.some("ok", 5)
            try:
                await client.triton.unregister_cuda_shared_memory()
            except Exception as error:
                assert "Failed to unregister" in str(error)
        await load.stop()
        await load.at_peace(model)
    assert all("Unable to find shared memory region" in each for each in load.refusals)
