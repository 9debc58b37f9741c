"""What cannot be is refused with the reason; what fails leaves nothing behind.

That nothing is left on either side is seen to by the guard of all tests here.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import emulated_cuda
import numpy as np
import pytest
from chaos.proxy import Proxy
from emulated_cuda import arrays
from emulated_cuda.server import CudaServer
from models import MODELS
from support import drop_owners, until, when_answered

import triton_zerocopy as tz
from triton_zerocopy._cuda import device as device_module
from triton_zerocopy._cuda import devices

pytestmark = [pytest.mark.anyio, pytest.mark.emulated, pytest.mark.once]

X = np.arange(4, dtype=np.float32)


@pytest.fixture
async def client(cuda_server):
    async with tz.Client(cuda_server.grpc_url, memory="cuda:0") as client:
        yield client


def test_importing_and_constructing_touch_no_cuda():
    """Neither a client that was made nor the package knows of CUDA before a model wants it."""
    code = """
import sys
import triton_zerocopy as tz
tz.Client("localhost:1", memory="cuda:0")
assert not [name for name in sys.modules if name == "cuda" or name.startswith("cuda.")]
import threading
assert threading.active_count() == 1
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(("function", "times"), [("cudaStreamDestroy", 32), ("cudaFree", 1)])
def test_the_process_does_not_end_under_the_devices_threads(function, times):
    """Not while they give back what they have, either: CUDA may be gone in the midst of a call."""
    code = f"""
import atexit, threading
import emulated_cuda

emulated_cuda.install()
given_back = []
atexit.register(lambda: print(len(given_back)))  # runs after those that are registered later

from triton_zerocopy._cuda import devices
from triton_zerocopy._cuda.memory import Allocation

begun = threading.Event()

def slowly():
    begun.set()
    threading.Event().wait(0.01)
    given_back.append(1)

hook = emulated_cuda.on_call("{function}", slowly)
hook.__enter__()
device = devices.open_device(0)
device.post(lambda: Allocation(device, 100))
device.let_go()
assert begun.wait(10)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert int(done.stdout) == times


async def test_a_device_does_not_end_before_what_it_waits_for(emulation):
    device = await asyncio.to_thread(devices.open_device, 0)
    with emulation.hold(2):
        settling = device.settle([2])  # a stream without a name
        device.let_go()
        await device.ask(lambda: None)
        assert not settling.done()
    await settling
    await until(lambda: not devices._devices)


async def test_no_cuda_python(cuda_server, emulation):
    emulation.hide()
    async with tz.Client(cuda_server.grpc_url) as client:
        with pytest.raises(tz.CudaError, match=r"pip install 'triton-zerocopy\[cuda\]'") as raised:
            await client.model("fixed", memory="cuda:0")
        assert (raised.value.name, raised.value.code) == ("", 0)
        async with client.model("fixed") as model:  # "auto" does not even look
            assert model.memory == "system"


async def test_no_driver(client, emulation):
    emulation.set_driver(present=False)
    with pytest.raises(tz.CudaError, match="no NVIDIA driver here") as raised:
        await client.model("fixed")
    assert (raised.value.name, raised.value.code) == ("cudaErrorInsufficientDriver", 35)
    emulation.set_driver(present=True, version=11080)
    with pytest.raises(tz.CudaError, match="knows CUDA 11.8, 12.0 is the oldest"):
        await client.model("fixed")


async def test_device_out_of_range(client, emulation):
    with pytest.raises(tz.CudaError, match="it sees 1, 'cuda:0' to 'cuda:0'") as raised:
        await client.model("fixed", memory="cuda:1")
    assert raised.value.name == "cudaErrorInvalidDevice"
    assert "CUDA_VISIBLE_DEVICES" in str(raised.value)
    emulation.set_devices(0)
    with pytest.raises(tz.CudaError):
        await client.model("fixed")


async def test_a_gpu_that_is_full(client, emulation):
    emulation.limit(0, 8 << 20)
    async with client.model("add_one") as model:
        with pytest.raises(tz.CapacityError, match="of GPU memory were wanted") as raised:
            await model.infer({"INPUT0": np.zeros(4 << 20, np.float32)})
        assert raised.value.needed == 16 << 20
        assert not raised.value.model_ran
        result = await model.infer({"INPUT0": X})  # and it goes on
        assert np.array_equal(await result.numpy("OUTPUT0"), X + 1)
    emulation.limit(0, 8 << 30)


async def test_kept_results_give_way_when_the_gpu_is_full(client, emulation):
    async with client.model("add_one", slots=1) as model:
        array = np.zeros(1 << 20, np.float32)  # 4 MiB
        for _ in range(2):
            await model.infer({"INPUT0": array})
        before = emulation.live().device
        emulation.limit(0, 14 << 20)  # the slot, the kept result, and no more
        smaller = np.zeros(3 << 18, np.float32)
        result = await model.infer({"INPUT0": smaller})
        assert emulation.live().device == before
        assert np.array_equal(await result.numpy("OUTPUT0"), smaller + 1)
        emulation.limit(0, 8 << 30)


async def test_the_budget_counts_device_memory(cuda_server):
    async with tz.Client(cuda_server.grpc_url, max_shm_bytes=4 << 20) as client:
        async with client.model("fixed", memory="cuda:0", slots=4) as model:
            async with model.lease(), model.lease():
                assert client.statistics().bytes_reserved == 4 << 20
                with pytest.raises(tz.CapacityError, match="max_shm_bytes"):
                    await model.infer({"INPUT0": X})
        await until(lambda: client.statistics().bytes_reserved == 0)


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("cudaMalloc", "cudaErrorMemoryAllocation"),
        ("cudaMalloc", "cudaErrorIllegalAddress"),
        ("cudaIpcGetMemHandle", "cudaErrorNotSupported"),
        ("cudaMemcpyAsync", "cudaErrorInvalidValue"),
        ("cudaEventRecord", "cudaErrorInvalidResourceHandle"),
        ("cudaEventCreateWithFlags", "cudaErrorMemoryAllocation"),
        ("cudaHostAlloc", "cudaErrorMemoryAllocation"),
    ],
)
async def test_a_call_of_cuda_fails(client, emulation, function, error):
    """At any point; the caller is told, and the next call works."""
    large = np.arange(100_000, dtype=np.float32)
    async with client.model("add_one", slots=1) as model:
        failed = 0
        for after in range(8):
            with emulation.fail(function, error, after=after) as injected:
                try:
                    result = await model.infer({"INPUT0": large})
                    await result.numpy("OUTPUT0")
                except (tz.CudaError, tz.CapacityError) as problem:
                    failed += 1
                    assert isinstance(problem, tz.CapacityError) or problem.name == error
            if injected.times == 0 and after == 0:
                assert failed or function.startswith("cudaEvent")
            result = await model.infer({"INPUT0": large})
            assert np.array_equal(await result.numpy("OUTPUT0"), large + 1)
            del result
        await until(lambda: model.statistics().available == 1)
        assert model.statistics().retired == 0


async def test_a_server_that_cannot_see_the_memory(server):
    """A server without a GPU refuses every handle, and says no more than that."""
    async with tz.Client(server.grpc_url) as client:
        with pytest.raises(tz.ServerCannotSeeMemory, match="CUDA_VISIBLE_DEVICES") as raised:
            await client.model("fixed", memory="cuda:0")
        assert "--ipc=host --pid=host" in str(raised.value)
        await until(lambda: emulated_cuda.live().device == 0)
        with pytest.raises(tz.ServerCannotSeeMemory):
            await client.region(100, memory="cuda:0")
        with pytest.raises(tz.ServerCannotSeeMemory):
            await client.adopt(arrays.empty((1 << 19,)))
        async with client.model("fixed") as model:
            await model.infer({"INPUT0": X})


async def test_tensors_that_do_not_fit(client):
    host = arrays.from_numpy(np.zeros(4, np.float32))
    async with (
        client.model("fixed") as model,
        client.model("rows") as rows,
        client.model("fixed", memory="system") as on_host,
        client.model("fixed", memory="wire") as on_wire,
    ):
        refuse = partial(pytest.raises, tz.InputError)
        with refuse(match=r"expected shape \[4\].*got \[2, 2\]"):
            await model.infer({"INPUT0": host.as_strided((2, 2), (8, 4))})
        with refuse(match="expected FP32 .*got INT32"):
            await model.infer({"INPUT0": arrays.from_numpy(np.zeros(4, np.int32))})
        with refuse(match="no datatype"):
            await model.infer({"INPUT0": arrays.from_numpy(np.zeros(4, np.complex64))})
        for other in (on_host, on_wire):
            with refuse(match="open it with memory='cuda:N'"):
                await other.infer({"INPUT0": host})
            with refuse(match="open it with memory='cuda:N'"):
                await other.infer({"INPUT0": X}, out={"OUTPUT0": host})
        row = arrays.from_numpy(np.zeros(3, np.float32))
        with refuse(match="host memory among rows on a GPU"):
            await rows.infer({"INPUT0": [row, np.zeros(3, np.float32)]})
        with refuse(match="on a GPU among host rows"):
            await rows.infer({"INPUT0": [np.zeros(3, np.float32), row]})
        with refuse(match="rows of one shape"):
            await rows.infer({"INPUT0": [row, row[:2]]})
        with refuse(match="negative strides"):
            await model.infer({"INPUT0": host[::-1]})
        for out, message in [
            (host.exporting(is_read_only=True), "read-only"),
            (arrays.from_numpy(np.zeros(4, np.int32)), "expected FP32, got INT32"),
            (arrays.from_numpy(np.zeros(5, np.float32)), r"got \[5\]"),
            (host.as_strided((4,), (0,)), "share memory"),
        ]:
            with refuse(match=message):
                await model.infer({"INPUT0": X}, out={"OUTPUT0": out})


async def test_capsules(client):
    tensor = arrays.from_numpy(X)

    class Twice:
        """Gives the same capsule each time."""

        def __init__(self):
            self.capsule = None

        def __dlpack_device__(self):
            return tensor.__dlpack_device__()

        def __dlpack__(self, **options):
            self.capsule = self.capsule or tensor.__dlpack__(**options)
            return self.capsule

    class Nothing(Twice):
        def __dlpack__(self, **options):
            return object()

    class Refuses(Twice):
        def __dlpack__(self, **options):
            raise BufferError("it requires grad")

    async with client.model("fixed") as model:
        twice = Twice()
        result = await model.infer({"INPUT0": twice})
        assert np.array_equal(await result.numpy("OUTPUT0"), X + 1)
        with pytest.raises(tz.InputError, match="used once only"):
            await model.infer({"INPUT0": twice})
        with pytest.raises(tz.InputError, match="no usable capsule"):
            await model.infer({"INPUT0": Nothing()})
        with pytest.raises(tz.InputError, match="it requires grad"):
            await model.infer({"INPUT0": Refuses()})
        for options in ({"is_old": True}, {"has_null_strides": True}, {"has_byte_offset": True}):
            given = arrays.from_numpy(np.arange(8, dtype=np.float32))[4:].exporting(**options)
            result = await model.infer({"INPUT0": given})
            assert np.array_equal(await result.numpy("OUTPUT0"), X + 5)


async def test_an_interface_to_nowhere(client):
    """An address that is in no GPU's memory is never read."""
    tensor = arrays.from_numpy(X)

    def lend(**changes):
        lender = arrays.InterfaceOnly(tensor)
        lender.__cuda_array_interface__ = {**lender.__cuda_array_interface__, **changes}
        return lender

    async with client.model("fixed") as model:
        for changes, message in [
            ({"data": (X.ctypes.data, False)}, "not in the memory of a GPU"),
            ({"typestr": ">f4"}, "no datatype"),
            ({"mask": object()}, "masked"),
            ({"shape": None}, "cannot be read"),
            ({"strides": (-4,)}, "negative strides"),
        ]:
            with pytest.raises(tz.InputError, match=message):
                await model.infer({"INPUT0": lend(**changes)})


async def test_a_stream_that_was_destroyed(client):
    """What was queued there is waited for all the same, with everything else on the GPU."""
    async with client.model("fixed", slots=1) as model:
        stream = arrays.Stream()
        with arrays.current_stream(stream):
            async with model.lease() as lease:
                taken = arrays.from_dlpack(lease.inputs["INPUT0"])
                taken.fill_(3)
                del taken
                result = await lease.infer()
                assert np.array_equal(await result.numpy("OUTPUT0"), np.full(4, 4))
        async with model.lease() as lease:
            lease.release_after(int(stream))
            del stream
            gc.collect()
            result = await lease.infer({"INPUT0": X})
            assert np.array_equal(await result.numpy("OUTPUT0"), X + 1)
        await until(lambda: model.statistics().available == 1)


async def test_memory_outlives_everything(cuda_server):
    """Arrays that the caller kept keep their bytes when lease, model and client are gone."""
    async with tz.Client(cuda_server.grpc_url, memory="cuda:0") as client:
        async with client.model("fixed") as model:
            own = (await model.infer({"INPUT0": X}))["OUTPUT0"]
            async with model.lease() as lease:
                result = await lease.infer({"INPUT0": X + 1})
                kept = result["OUTPUT0"]
                taken = arrays.from_dlpack(kept)
    assert np.array_equal(await own.numpy(), X + 1)
    assert np.array_equal(await kept.numpy(), X + 2)
    assert np.array_equal(taken.numpy(), X + 2)
    del result
    assert devices._devices  # somebody has to free it
    del own, kept, taken
    gc.collect()
    await until(lambda: not devices._devices)


async def test_the_device_thread_ends_with_its_last_user(cuda_server):
    async with tz.Client(cuda_server.grpc_url) as client:
        assert not devices._devices
        async with client.model("fixed", memory="cuda:0"):
            assert set(devices._devices) == {0}
        assert set(devices._devices) == {0}
        async with tz.Client(cuda_server.grpc_url) as other, other.model("fixed", memory="cuda:0"):
            assert set(devices._devices) == {0}
    await until(lambda: not devices._devices)
    async with tz.Client(cuda_server.grpc_url) as client:
        async with client.model("fixed", memory="cuda:0") as model:
            await model.infer({"INPUT0": X})


async def test_a_restarted_server_heals(emulated_library, tmp_path):
    """A lost region is registered anew, with the same memory, and the call is repeated."""
    models = {"fixed": MODELS["fixed"]}
    with CudaServer(models, library=emulated_library, directory=tmp_path) as own:
        async with (
            tz.Client(own.grpc_url, memory="cuda:0") as client,
            client.model("fixed", slots=2) as model,
            client.region(4096, memory="cuda:0") as region,
        ):
            await model.infer({"INPUT0": X})
            await own.arestart()
            await client.wait_ready(30)
            for _ in range(3):
                result = await model.infer({"INPUT0": X})
                assert np.array_equal(await result.numpy("OUTPUT0"), X + 1)
            assert model.statistics().retired == 0
            await region.quiesce()


async def test_memory_is_leaked_rather_than_freed_without_proof(emulated_library, tmp_path):
    """The server is gone, or seems so: what it had mapped is not freed under it."""
    models = {"fixed": MODELS["fixed"]}
    with CudaServer(models, library=emulated_library, directory=tmp_path) as own:
        client = tz.Client(own.grpc_url, memory="cuda:0", timeout=5)
        model = await client.model("fixed", slots=1)
        await model.infer({"INPUT0": X})
        before = emulated_cuda.live().device
        await own.akill()
        await client.aclose(1)
    gc.collect()
    await asyncio.sleep(0.05)
    assert emulated_cuda.live().device >= 1, before
    drop_owners(own.grpc_url)
    # Here only, where it is known that the server is dead:
    device = devices._devices[0]
    device._pinned.clear()
    device.post(lambda: None)


async def test_a_region_that_nobody_closed_warns(cuda_server):
    client = tz.Client(cuda_server.grpc_url)
    region = await client.region(4096, memory="cuda:0")
    name = region.name
    client._regions._open.clear()
    await asyncio.sleep(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del region
        gc.collect()
    assert any("device memory was never closed" in str(each.message) for each in caught)
    assert emulated_cuda.live().device == 1  # the server has it mapped
    assert name in cuda_server.regions()
    await client.aclose()
    async with tz.Client(cuda_server.grpc_url) as other:
        assert (await other.reap()).registrations == 1
    devices._devices[0]._pinned.clear()
    devices._devices[0].post(lambda: None)


async def test_a_close_while_memory_is_made_known_does_not_free_it(cuda_server, emulation):
    """The server may have it open by then."""
    with Proxy(cuda_server.grpc_url) as proxy:
        client = tz.Client(proxy.url)
        async with client.region(4096, memory="cuda:0"):
            pass
        proxy.black_hole()
        making = asyncio.create_task(client.region(4096, memory="cuda:0").__aenter__())
        await until(lambda: emulation.live("library").device == 1)
        await until(lambda: len(client._runtime.regions.ownership.owner.names) == 1)
        await client.aclose(timeout=0.05)
        await asyncio.wait([making])
        assert emulation.live("library").device == 1
        proxy.heal("reset")
    drop_owners(proxy.url)
    devices._devices[0]._pinned.clear()
    devices._devices[0].post(lambda: None)


async def test_an_ambiguous_end(emulated_library, tmp_path):
    """After a connection was lost, a slot's memory is not used before the server let go."""
    models = {"slow": MODELS["slow"]}
    with CudaServer(models, library=emulated_library, directory=tmp_path) as own:
        async with (
            tz.Client(own.grpc_url, memory="cuda:0") as client,
            client.model("slow", slots=1) as model,
        ):
            x = np.zeros(16, np.float32)
            await model.infer({"INPUT0": x})
            x[0] = 30
            call = asyncio.create_task(model.infer({"INPUT0": x}))
            await until(lambda: model.statistics().in_flight == 1)
            await own.akill()
            with pytest.raises(tz.ServerUnavailable):
                await call
            await own.arestart()
            await client.wait_ready(30)
            x[0] = 0
            result = await model.infer({"INPUT0": x})
            assert np.array_equal(await result.numpy("OUTPUT0"), x + 1)


async def test_a_gpu_that_is_part_of_the_processor(client, emulation, monkeypatch):
    facts = emulated_cuda.runtime.cudaGetDeviceProperties

    def integrated(device):
        status, properties = facts(device)
        properties.integrated = 1
        return status, properties

    monkeypatch.setattr(emulated_cuda.runtime, "cudaGetDeviceProperties", integrated)
    with pytest.raises(tz.CudaError, match="Jetson"):
        await client.model("fixed")
    assert not devices._devices


async def test_a_device_tensor_that_has_no_place(client):
    """An optional input that is not leased goes inside the message, where no tensor of a GPU can."""
    async with client.model("optional") as model:
        given = arrays.from_numpy(X)
        result = await model.infer({"A": X, "B": given})
        assert np.array_equal(await result.numpy("OUTPUT0"), 2 * X)
        async with model.lease({"A": (4,)}) as lease:
            with pytest.raises(tz.InputError, match="needs a place in the lease"):
                await lease.infer({"A": X, "B": given})
            result = await lease.infer({"A": given, "B": X})
            assert np.array_equal(await result.numpy("OUTPUT0"), 2 * X)


async def test_what_is_copied_is_kept_until_it_is(client, emulation):
    """Also when its caller left: neither end of a queued copy is used for anything else."""
    async with client.model("fixed", slots=1) as model:
        await model.infer({"INPUT0": X})  # the slot has memory from here on
        stream = arrays.Stream()
        with arrays.current_stream(stream), emulation.hold(int(stream)) as gate:
            given = arrays.from_numpy(X)
            emulation.forget_calls()
            call = asyncio.create_task(model.infer({"INPUT0": given}))
            del given
            await until(lambda: emulation.calls("cudaMemcpyAsync"))
            call.cancel()
            await asyncio.wait([call])  # awaiting it would keep its frames in a traceback
            assert call.cancelled()
            del call
            gc.collect()
            assert arrays.exports() == 1  # the producer's memory is still held
            gate.open()
        result = await model.infer({"INPUT0": X + 1})
        assert np.array_equal(await result.numpy("OUTPUT0"), X + 2)
        await until(lambda: arrays.exports() == 0)


async def test_a_result_that_nobody_waits_for_keeps_its_memory_until_it_is_copied(
    client, emulation, monkeypatch
):
    """Cancelled while the GPU copies it out: the memory is not the next result's meanwhile."""
    async with client.model("fixed", slots=2) as model:
        await model.infer({"INPUT0": X})
        # The copy out waits for a stream that is held, as it would for a GPU that is busy.
        stream = arrays.Stream()
        device = devices._devices[0]
        monkeypatch.setattr(device.streams, "own", lambda: int(stream))
        gate = emulation.hold(int(stream))
        is_answered = when_answered(model)
        call = asyncio.create_task(model.infer({"INPUT0": arrays.from_numpy(X)}))
        await is_answered.wait()
        for _ in range(5):
            await asyncio.sleep(0.001)
        call.cancel()
        await asyncio.wait([call])
        del call
        gc.collect()
        monkeypatch.undo()
        other = await model.infer({"INPUT0": arrays.from_numpy(X + 100)})
        gate.open()
        stream.synchronize()
        assert np.array_equal(await other.numpy("OUTPUT0"), X + 101)
        await until(lambda: model.statistics().available == 2)


async def test_a_gpu_that_is_busy_for_long(client, emulation, monkeypatch):
    """The device's thread looks again and again, and goes on however often that was."""
    monkeypatch.setattr(device_module, "_LONGEST", 1e-9)
    async with client.model("fixed") as model:
        await model.infer({"INPUT0": X})
        device, looks = devices._devices[0], []
        look = device.streams.look

        def counted():
            looks.append(None)
            return look()

        monkeypatch.setattr(device.streams, "look", counted)
        stream = arrays.Stream()
        monkeypatch.setattr(device.streams, "own", lambda: int(stream))
        with emulation.hold(int(stream)):
            call = asyncio.create_task(model.infer({"INPUT0": arrays.from_numpy(X)}))
            await until(lambda: len(looks) > 3000)
        result = await call
        assert np.array_equal(await result.numpy("OUTPUT0"), X + 1)
