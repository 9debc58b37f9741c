"""Tensors of another library that the server uses where they are."""

from __future__ import annotations

import asyncio
import gc

import numpy as np
import pytest
from support import until

import triton_zerocopy as tz

pytestmark = pytest.mark.anyio

LARGE = 1 << 19  # FP32 elements of 2 MiB


@pytest.fixture
async def client(gpu_server):
    async with tz.Client(gpu_server.grpc_url, memory="cuda:0") as client:
        yield client


def values(size=LARGE):
    return np.arange(size, dtype=np.float32)


async def test_infer_from_a_tensor_and_from_the_middle_of_one(client, gpu):
    tensor = gpu.tensor(values())
    async with client.model("add_one") as model:
        for view, expected in ((tensor, values()), (tensor[1000:1010], values()[1000:1010])):
            async with client.adopt(view) as ref:
                assert isinstance(ref, tz.AdoptedTensor)
                assert (ref.shape, ref.datatype) == (expected.shape, "FP32")
                result = await model.infer({"INPUT0": ref})
                assert np.array_equal(await result.numpy("OUTPUT0"), expected + 1)
                async with model.lease({"INPUT0": expected.shape}) as lease:
                    result = await lease.infer({"INPUT0": ref})
                    assert np.array_equal(await result.numpy("OUTPUT0"), expected + 1)
                result = await client.infer("add_one", {"INPUT0": ref})
                assert np.array_equal(result["OUTPUT0"], expected + 1)


async def test_two_of_one_allocation_at_a_time(client, gpu):
    tensor = gpu.tensor(values())
    async with client.adopt(tensor[:4]) as first, client.adopt(tensor[4:8]) as second:
        for ref, expected in ((first, values(4)), (second, values(8)[4:])):
            result = await client.infer("fixed", {"INPUT0": ref})
            assert np.array_equal(result["OUTPUT0"], expected + 1)


async def test_as_a_place_for_an_output(client, gpu):
    tensor = gpu.tensor(values())
    async with client.adopt(tensor[8:12]) as ref:
        result = await client.infer("fixed", {"INPUT0": values(4)}, outputs={"OUTPUT0": ref})
        assert np.array_equal(await result.numpy("OUTPUT0"), values(4) + 1)
    expected = values()
    expected[8:12] = values(4) + 1
    assert np.array_equal(gpu.host(tensor), expected)


@pytest.mark.emulated
async def test_no_byte_is_copied(client, gpu, emulation):
    tensor = gpu.tensor(values())
    gpu.host(tensor)
    async with client.adopt(tensor) as ref, client.adopt(gpu.empty((LARGE,))) as place:
        emulation.forget_calls()
        await client.infer("add_one", {"INPUT0": ref}, outputs={"OUTPUT0": place})
        assert emulation.bytes_copied() == 0


async def test_what_is_queued_on_it_comes_first_at_each_use(client, gpu):
    tensor = gpu.tensor(values())
    async with client.adopt(tensor) as ref, client.model("add_one") as model:
        for value in range(4):
            with gpu.stream() as stream, gpu.block(stream) as gate:
                gpu.fill_(tensor, value)
                if value % 2:
                    calling = client.infer("add_one", {"INPUT0": ref})
                else:
                    calling = model.infer({"INPUT0": ref})
                call = asyncio.create_task(calling)
                for _ in range(20):
                    await asyncio.sleep(0.001)
                gate.open()
                result = await call
            assert np.array_equal(await result.numpy("OUTPUT0"), np.full(LARGE, value + 1))


async def test_it_is_held_until_the_server_let_go(client, gpu):
    """Also when its owner drops it, and while a call that nobody waits for still reads it."""
    x = np.full(LARGE, 5, np.float32)
    x[0] = 0.3  # seconds that the model takes
    tensor = gpu.tensor(x)
    adoption = client.adopt(tensor[:16])
    ref = await adoption
    del tensor, adoption
    gc.collect()
    call = asyncio.create_task(client.infer("slow", {"INPUT0": ref}))
    await until(lambda: ref.region._calls == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    closing = asyncio.create_task(ref.aclose())
    await asyncio.sleep(0.01)
    assert not closing.done()
    await closing
    with pytest.raises(tz.RegionClosed):
        await client.infer("slow", {"INPUT0": ref})


async def test_closing_the_client_ends_adoptions(gpu_server, gpu):
    async with tz.Client(gpu_server.grpc_url) as client:
        await client.adopt(gpu.tensor(values()))
        assert client.statistics().regions == 1
        assert client.statistics().bytes_reserved == 0  # it is not the client's memory


async def test_what_cannot_be_adopted(client, gpu):
    large = gpu.tensor(values())
    for wrong, message in [
        (values(), "not in the memory of a GPU"),
        ([1.0], "not in the memory of a GPU"),
        (large[::2], "do not lie one after another"),
        (large[:0], "without elements"),
    ]:
        with pytest.raises(tz.InputError, match=message):
            await client.adopt(wrong)


@pytest.mark.emulated  # torch has segments of 2 MiB also for small tensors
async def test_a_small_allocation(client, gpu):
    with pytest.raises(tz.CudaError, match="below 2 MiB"):
        await client.adopt(gpu.tensor(values(100)))


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ("managed", "managed memory"),
        ("pool", "stream-ordered pool"),
        ("vmm", "expandable_segments"),
    ],
)
async def test_memory_that_has_no_handle(client, gpu, memory, message):
    from emulated_cuda import arrays

    tensor = arrays.empty((LARGE,), memory=memory).fill_(2)
    with pytest.raises(tz.CudaError, match=message) as raised:
        await client.adopt(tensor)
    assert "pass the tensor to infer" in str(raised.value)
    async with client.model("add_one") as model:  # and that works
        result = await model.infer({"INPUT0": tensor})
        assert np.array_equal(await result.numpy("OUTPUT0"), np.full(LARGE, 3))


@pytest.mark.emulated
async def test_memory_that_was_freed_under_it(client, gpu, emulation):
    """By an owner that does not keep what it lent; the next use finds other memory there."""

    class Careless:
        def __init__(self, address):
            self.__cuda_array_interface__ = {
                "shape": (LARGE,),
                "typestr": "<f4",
                "data": (address, False),
                "version": 3,
            }

    emulation.reuse_addresses()
    address = emulation.allocate(4 * LARGE, "device")
    ref = await client.adopt(Careless(address))
    emulation.release(address)
    again = emulation.allocate(4 * LARGE, "device")
    assert again == address
    with pytest.raises(tz.CudaError, match="was freed while it was adopted"):
        await client.infer("add_one", {"INPUT0": ref})
    await ref.aclose()
    emulation.release(again)
