"""What is queued on a GPU comes first, and nobody waits for it but who must.

Streams of the emulation do nothing before they must, so each forgotten wait is a wrong result
here; on a real GPU it would be one now and then.
"""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from loops import BOTH
from support import until, when_answered

import triton_zerocopy as tz

pytestmark = pytest.mark.anyio

X = np.arange(4, dtype=np.float32)


@pytest.fixture(params=BOTH)
def anyio_backend(request):
    return request.param


@pytest.fixture
async def client(gpu_server):
    async with tz.Client(gpu_server.grpc_url, memory="cuda:0") as client:
        yield client


async def turns():
    """Let everything happen that can."""
    for _ in range(20):
        await asyncio.sleep(0.001)


async def test_the_producers_queue_comes_first(client, gpu):
    """A tensor is copied when the kernels that make it have run, and not sent before."""
    async with client.model("fixed") as model:
        with gpu.stream() as stream:
            x = gpu.tensor(X)
            with gpu.block(stream) as gate:
                gpu.fill_(x, 8)
                call = asyncio.create_task(model.infer({"INPUT0": x}))
                await turns()
                assert gpu.is_emulated is False or not call.done()
                gate.open()
                result = await call
        assert np.array_equal(await result.numpy("OUTPUT0"), np.full(4, 9))


async def test_a_producer_named_by_the_interface_comes_first(client, gpu):
    async with client.model("fixed") as model:
        with gpu.stream() as stream:
            x = gpu.tensor(X)
            with gpu.block(stream) as gate:
                gpu.fill_(x, 8)
                lender = gpu.interface_only(x, stream=int(stream))
                call = asyncio.create_task(model.infer({"INPUT0": lender}))
                await turns()
                gate.open()
                result = await call
        assert np.array_equal(await result.numpy("OUTPUT0"), np.full(4, 9))


async def test_kernels_that_make_a_leased_input_come_first(client, gpu):
    async with client.model("fixed") as model, model.lease() as lease:
        for value in (3, 4):
            with gpu.stream() as stream:
                x = gpu.take(lease.inputs["INPUT0"])
                with gpu.block(stream) as gate:
                    gpu.fill_(x, value)
                    call = asyncio.create_task(lease.infer())
                    await turns()
                    gate.open()
                    result = await call
            assert np.array_equal(await result.numpy("OUTPUT0"), np.full(4, value + 1))


async def test_a_stream_that_nobody_said_is_known_by_release_after(client, gpu):
    async with client.model("fixed") as model, model.lease() as lease:
        x = gpu.take(lease.inputs["INPUT0"])
        with gpu.stream() as stream, gpu.block(stream) as gate:
            gpu.fill_(x, 3)
            lease.release_after(stream)
            call = asyncio.create_task(lease.infer())
            await turns()
            gate.open()
            result = await call
        assert np.array_equal(await result.numpy("OUTPUT0"), np.full(4, 4))
        with pytest.raises(tz.InputError, match="stream"):
            lease.release_after("a stream")
    with pytest.raises(tz.LeaseReleased):
        lease.release_after(stream)


@pytest.mark.parametrize("next_user", ["infer", "lease"])
async def test_a_slot_is_not_reused_under_a_queued_kernel(client, gpu, next_user):
    """A consumer's kernel still reads the output when its lease is over and its tensor gone."""

    async def use(model):
        if next_user == "infer":
            return await model.infer({"INPUT0": X + 100})
        async with model.lease() as lease:
            return await lease.infer({"INPUT0": X + 100})

    async with client.model("fixed", slots=1) as model:
        with gpu.stream() as stream:
            async with model.lease() as lease:
                result = await lease.infer({"INPUT0": X})
                taken = gpu.take(result["OUTPUT0"])
                gate = gpu.block(stream)
                seen = gpu.copy(taken)  # queued, not run
                del taken, result
            other = asyncio.create_task(use(model))
            await turns()
            if gpu.is_emulated:
                assert not other.done()
                assert model.statistics().available == 0
            gate.open()
            await other
            assert np.array_equal(gpu.host(seen), X + 1)


async def test_a_slot_is_not_reused_under_a_kernel_of_a_named_stream(client, gpu):
    async with client.model("fixed", slots=1) as model:
        async with model.lease() as lease:
            result = await lease.infer({"INPUT0": X})
            taken = gpu.take(result["OUTPUT0"])
            with gpu.stream() as stream:
                gate = gpu.block(stream)
                seen = gpu.copy(taken)
                lease.release_after(stream)
            del taken, result
        other = asyncio.create_task(model.infer({"INPUT0": X + 100}))
        await turns()
        gate.open()
        await other
        with gpu.stream():
            assert np.array_equal(gpu.host(seen), X + 1)


async def test_a_kept_array_parks_its_slot_until_its_kernels_are_done(client, gpu):
    async with client.model("fixed", slots=1) as model:
        with gpu.stream() as stream:
            async with model.lease() as lease:
                result = await lease.infer({"INPUT0": X})
                taken = gpu.take(result["OUTPUT0"])
            await until(lambda: model.statistics().parked == 1)
            other = await model.infer({"INPUT0": X + 100})  # in a spare slot
            assert np.array_equal(gpu.host(taken), X + 1)
            gate = gpu.block(stream)
            seen = gpu.copy(taken)
            del taken, result, lease
            await turns()
            if gpu.is_emulated:
                assert model.statistics().parked == 1
            gate.open()
            await until(lambda: model.statistics().parked == 0)
            assert np.array_equal(gpu.host(seen), X + 1)
        assert np.array_equal(await other.numpy("OUTPUT0"), X + 101)


async def test_memory_of_a_result_is_not_reused_under_a_queued_kernel(client, gpu):
    async with client.model("fixed") as model:
        with gpu.stream() as stream:
            result = await model.infer({"INPUT0": X})
            taken = gpu.take(result["OUTPUT0"])
            gate = gpu.block(stream)
            seen = gpu.copy(taken)
            del taken, result
            others = [await model.infer({"INPUT0": X + 100}) for _ in range(3)]
            gate.open()
            assert np.array_equal(gpu.host(seen), X + 1)
        del others


async def test_numpy_comes_after_what_was_queued(client, gpu):
    async with client.model("fixed") as model:
        y = (await model.infer({"INPUT0": X}))["OUTPUT0"]
        with gpu.stream() as stream, gpu.block(stream) as gate:
            gpu.add_(gpu.take(y), 10)
            copied = asyncio.create_task(y.numpy())
            await turns()
            gate.open()
            assert np.array_equal(await copied, X + 11)


async def test_out_comes_after_what_was_queued_on_it(client, gpu):
    async with client.model("fixed") as model:
        place = gpu.tensor(np.zeros(4, np.float32))
        with gpu.stream() as stream, gpu.block(stream) as gate:
            before = gpu.copy(place)  # reads the zeros, later
            call = asyncio.create_task(model.infer({"INPUT0": X}, out={"OUTPUT0": place}))
            await turns()
            gate.open()
            await call
            assert np.array_equal(gpu.host(before), np.zeros(4))
            assert np.array_equal(gpu.host(place), X + 1)


@pytest.mark.parametrize("tensor_is", ["an input", "out"])
async def test_a_long_literal_next_to_a_tensor(client, gpu, tensor_is):
    """Long lists are read in a thread, where the caller's current stream is not current."""
    async with client.model("echo") as model:
        others = {name: np.zeros((1, 2), spec.dtype) for name, spec in model.inputs.items()}
        literal = {**others, "INT64": [[1, 2]] * 5000}
        with gpu.stream() as stream, gpu.block(stream) as gate:
            tensor = gpu.tensor(np.zeros((1, 2), np.float32))
            if tensor_is == "an input":
                gpu.fill_(tensor, 8)
                inputs, out = {**literal, "FP32": tensor}, None
            else:
                before = gpu.copy(tensor)
                inputs, out = {**literal, "FP32": np.ones((1, 2), np.float32)}, {"OUT_FP32": tensor}
            call = asyncio.create_task(model.infer(inputs, outputs=["OUT_FP32"], out=out))
            await turns()
            gate.open()
            result = await call
            if tensor_is == "an input":
                assert np.array_equal(await result.numpy("OUT_FP32"), [[8, 8]])
            else:
                assert np.array_equal(gpu.host(before), [[0, 0]])
                assert np.array_equal(gpu.host(tensor), [[1, 1]])


async def others_go_on(model):
    for _ in range(20):
        result = await model.infer({"INPUT0": X + 1})
        assert np.array_equal(await result.numpy("OUTPUT0"), X + 2)


async def test_one_calls_producer_does_not_hold_up_another_call(client, gpu):
    async with client.model("fixed") as model:
        with gpu.stream() as stream:
            x = gpu.tensor(X)
            with gpu.block(stream) as gate:
                gpu.fill_(x, 8)
                call = asyncio.create_task(model.infer({"INPUT0": x}))
                await turns()
                await others_go_on(model)
                gate.open()
                await call


def held_and_destroyed(gpu):
    """Return a stream that was destroyed with work left, and that work's gate."""
    with gpu.stream() as stream:
        gate = gpu.block(stream)
        return int(stream), gate


def held_per_thread(gpu):
    """Return a stream that is another one in each thread, and its work's gate."""
    return 2, gpu.block(2)


@pytest.mark.emulated
@pytest.mark.parametrize("hold", [held_and_destroyed, held_per_thread])
async def test_a_producers_stream_without_a_name_does_not_hold_up_another_call(client, gpu, hold):
    """All of the GPU is waited for then, by the call that has to."""
    async with client.model("fixed") as model:
        stream, gate = hold(gpu)
        with gate:
            x = gpu.interface_only(gpu.tensor(X), stream=stream)
            call = asyncio.create_task(model.infer({"INPUT0": x}))
            await until(lambda: model.statistics().in_use == 1)
            await turns()
            await others_go_on(model)
            assert not call.done()
        result = await call
        assert np.array_equal(await result.numpy("OUTPUT0"), X + 1)


@pytest.mark.emulated
@pytest.mark.parametrize("hold", [held_and_destroyed, held_per_thread])
async def test_a_leases_stream_without_a_name_does_not_hold_up_another_call(client, gpu, hold):
    async with client.model("fixed") as model:
        stream, gate = hold(gpu)
        with gate:
            async with model.lease() as lease:
                await lease.infer({"INPUT0": X})
                lease.release_after(stream)
            await others_go_on(model)
            assert model.statistics().in_use == 1
        await until(lambda: model.statistics().in_use == 0)


@pytest.mark.emulated
async def test_freeing_memory_does_not_hold_up_a_call(client, gpu):
    """CUDA frees memory when the GPU is idle; who closes a region waits for that, nobody else."""
    async with client.model("fixed") as model:
        region = await client.region(4096, memory="cuda:0")
        with gpu.stream() as stream, gpu.block(stream):
            closing = asyncio.create_task(region.aclose())
            await others_go_on(model)
            assert not closing.done()
        await closing


@pytest.mark.emulated
async def test_a_closed_region_has_given_its_memory_back(client, gpu, emulation):
    """Whoever makes the next one finds it."""
    region = await client.region(4096, memory="cuda:0")
    before = emulation.live("library").device
    begun, may_go_on = threading.Event(), threading.Event()

    def slowly():
        begun.set()
        may_go_on.wait(10)

    with emulation.on_call("cudaFree", slowly):
        closing = asyncio.create_task(region.aclose())
        await until(begun.is_set)
        await turns()
        assert not closing.done()
        may_go_on.set()
        await closing
    assert emulation.live("library").device == before - 1


async def test_cancelled_while_the_gpu_copies(client, gpu):
    """The caller is released at once; the slot when the copy is done."""
    async with client.model("fixed", slots=1) as model:
        await model.infer({"INPUT0": X})  # the slot has memory from here on
        with gpu.stream() as stream:
            x = gpu.tensor(X)
            with gpu.block(stream) as gate:
                gpu.fill_(x, 8)
                call = asyncio.create_task(model.infer({"INPUT0": x}))
                await until(lambda: model.statistics().in_use == 1)
                await turns()
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                if gpu.is_emulated:
                    assert model.statistics().in_use == 1
                with pytest.raises(tz.InferTimeout):
                    await model.infer({"INPUT0": X}, timeout=0.05)
                gate.open()
                result = await model.infer({"INPUT0": X})
                assert np.array_equal(await result.numpy("OUTPUT0"), X + 1)


async def test_a_cancel_waits_for_a_copy_into_the_callers_own_tensor(client, gpu):
    async with client.model("fixed") as model:
        # What is freed while the stream is blocked would wait for it: the whole GPU does.
        await model.infer({"INPUT0": X})
        place = gpu.tensor(np.zeros(4, np.float32))
        with gpu.stream() as stream, gpu.block(stream) as gate:
            gpu.fill_(place, 1)
            is_answered = when_answered(model)
            call = asyncio.create_task(model.infer({"INPUT0": X}, out={"OUTPUT0": place}))
            await is_answered.wait()
            await turns()
            call.cancel()
            await turns()
            if gpu.is_emulated:
                assert not call.done()
            gate.open()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert np.array_equal(gpu.host(place), X + 1)


@pytest.mark.emulated
async def test_the_callers_threads_never_touch_cuda(client, gpu, emulation):
    """A thread of the library makes all CUDA calls, on one device; another one those that block."""
    async with client.model("rows", slots=2) as model:
        batch = np.arange(30, dtype=np.float32).reshape(10, 3)
        await model.infer({"INPUT0": gpu.tensor(batch)})
        result = await model.infer({"INPUT0": batch})
        await result.numpy("OUTPUT0")
        gpu.host(gpu.take(result["SUM"]))
        async with model.lease() as lease:
            gpu.take(lease.inputs["INPUT0"])
            await lease.infer()
            lease.inputs["INPUT0"].__cuda_array_interface__
        async with client.region(4096, memory="cuda:0") as region:
            await region.write(batch)
        async with client.adopt(gpu.empty((1 << 19,))) as ref:
            await client.infer("add_one", {"INPUT0": ref}, outputs=["OUTPUT0"])
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    made_by = {(names[thread], device) for thread, device in emulation.contexts()}
    assert made_by == {("triton_zerocopy cuda:0", 0), ("triton_zerocopy cuda:0 blocking", 0)}


@pytest.mark.emulated
async def test_the_event_loop_goes_on_while_the_gpu_is_busy(client, gpu):
    """While everything waits for the GPU, the loop has its turns."""
    async with client.model("fixed") as model:
        with gpu.stream() as stream, gpu.block(stream) as gate:
            x = gpu.tensor(X)
            calls = [asyncio.create_task(model.infer({"INPUT0": x})) for _ in range(4)]
            await until(lambda: model.statistics().in_use == 4)
            assert await client.is_ready()
            gate.open()
            await asyncio.gather(*calls)
