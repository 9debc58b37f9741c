"""What only a real GPU can answer: order where work overlaps, other allocators, memory going back.

Skipped without --gpu. What is no yes or no is printed at the end of the run.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import probes
import pytest
from gpu_option import skip_without_gpu
from real_machine import TOLERANCE, free_bytes, registered
from real_memory import GRANULE, Memory
from support import until

import triton_zerocopy as tz
from triton_zerocopy._cuda import cudart
from triton_zerocopy._cuda.staging import Staging

skip_without_gpu()
pytestmark = pytest.mark.anyio

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="its backend needs gcc")

LARGE = 16 << 20  # FP32 elements of 64 MiB
IN_PLACE = {"shapes": {"INPUT0": (LARGE,)}, "output_bytes": {"OUTPUT0": 4 * LARGE}}
"""What a model has to be told to have its output in the slot from the first call on."""

ROUNDS = 3
MB = 1e6


@pytest.fixture
async def client(gpu_server):
    async with tz.Client(gpu_server.grpc_url, memory="cuda:0") as client:
        yield client


@pytest.fixture
def torch_gpu(open_library):
    return open_library("torch")


def full(value, size=LARGE):
    return np.full(size, value, np.float32)


# Order. The memory that comes too early holds what was there the round before.


@needs_gcc
@pytest.mark.parametrize("size", [16, LARGE])
async def test_a_producer_is_waited_for(client, gpu, size):
    async with client.model("memcpy_first", **IN_PLACE) as model:
        for value in range(1, 1 + ROUNDS):
            with gpu.stream() as stream:
                x = gpu.empty((size,))
                gpu.block(stream)
                gpu.fill_(x, value)
                result = await model.infer({"INPUT0": x})
                assert (gpu.host(gpu.take(result["OUTPUT0"])) == value).all()
                assert (await result.numpy("OUTPUT0") == value).all()


@needs_gcc
async def test_producers_on_many_streams(client, gpu):
    async with client.model("memcpy_first", slots=8) as model:
        calls = []
        for value in range(8):
            with gpu.stream() as stream:
                x = gpu.empty((LARGE // 16,))
                gpu.block(stream)
                gpu.fill_(x, value)
                calls.append(asyncio.create_task(model.infer({"INPUT0": x})))
                # The task begins here, where that stream is the current one.
                await asyncio.sleep(0)
            del x
        for value, call in enumerate(calls):
            assert (await (await call).numpy("OUTPUT0") == value).all()


@needs_gcc
async def test_a_leased_input_that_is_still_being_made(client, gpu):
    async with client.model("memcpy_first", slots=1, **IN_PLACE) as model:
        for value in range(ROUNDS):
            async with model.lease() as lease:
                with gpu.stream() as stream:
                    x = gpu.take(lease.inputs["INPUT0"])
                    gpu.block(stream)
                    gpu.fill_(x, value)
                    result = await lease.infer()
                assert (await result.numpy("OUTPUT0") == value).all()
                del x, result


@needs_gcc
async def test_a_slot_is_reused_after_its_reader(client, gpu):
    async with client.model("memcpy_first", slots=1, **IN_PLACE) as model:
        for value in range(ROUNDS):
            with gpu.stream() as stream:
                async with model.lease() as lease:
                    result = await lease.infer({"INPUT0": full(value)})
                    taken = gpu.take(result["OUTPUT0"])
                    gpu.block(stream)
                    seen = gpu.copy(taken)
                    del taken, result
                # There is one slot; other bytes are to come into it.
                await model.infer({"INPUT0": full(-1)})
                assert (gpu.host(seen) == value).all()


@needs_gcc
async def test_a_slot_is_reused_after_the_streams_of_release_after(client, gpu):
    async with client.model("memcpy_first", slots=1, **IN_PLACE) as model:
        for value in range(ROUNDS):
            async with model.lease() as lease:
                result = await lease.infer({"INPUT0": full(value)})
                taken = gpu.take(result["OUTPUT0"])  # for the default stream
                with gpu.stream() as stream:
                    gpu.block(stream)
                    seen = gpu.copy(taken)
                    lease.release_after(stream)
                del taken, result
            await model.infer({"INPUT0": full(-1)})
            with gpu.stream():  # which waits for nothing
                assert (gpu.host(seen) == value).all()


@needs_gcc
async def test_memory_of_a_result_is_reused_after_its_reader(client, gpu):
    async with client.model("memcpy_first") as model:
        for value in range(ROUNDS):
            with gpu.stream() as stream:
                result = await model.infer({"INPUT0": full(value)})
                taken = gpu.take(result["OUTPUT0"])
                gpu.block(stream)
                seen = gpu.copy(taken)
                del taken, result
                others = [await model.infer({"INPUT0": full(-1)}) for _ in range(2)]
                assert (gpu.host(seen) == value).all()
                del others


STREAM_THAT_GOES = """
import asyncio, json, sys
import numpy as np
from real_memory import ok, runtime
import triton_zerocopy as tz

async def main():
    rt = runtime()
    ok(rt.cudaSetDevice(0))
    x = np.arange(1 << 20, dtype=np.float32)
    async with tz.Client(sys.argv[1], memory="cuda:0") as client, client.model("add_one") as model:
        for byte in range(10):
            y = (await model.infer({"INPUT0": x}))["OUTPUT0"]
            stream = ok(rt.cudaStreamCreateWithFlags(rt.cudaStreamNonBlocking))
            capsule = y.__dlpack__(stream=int(stream))
            address = y.view().address
            for _ in range(500):
                ok(rt.cudaMemsetAsync(address, byte, y.nbytes, stream))
            ok(rt.cudaStreamDestroy(stream))  # its work goes on
            del capsule
            assert set((await y.numpy()).tobytes()) == {byte}
            del y

asyncio.run(main())
"""


def test_a_stream_that_is_destroyed_while_it_is_needed(gpu_server):
    """CuPy destroys a stream with the object. A process of its own: a handle may be a pointer."""
    done = run_program(STREAM_THAT_GOES, gpu_server.grpc_url)
    assert done.returncode == 0, (done.returncode, done.stderr)


# Adopting


async def test_adopting_out_of_torchs_segments(client, torch_gpu):
    """Its allocator gives out parts of what it took from CUDA: small, medium and large ones."""
    torch = torch_gpu.torch
    for size in (1000, 1 << 18, 4 << 20):
        before, tensor = (
            torch.arange(size, dtype=torch.float32, device="cuda:0") for _ in range(2)
        )
        place = torch.zeros(size, dtype=torch.float32, device="cuda:0")
        expected = np.arange(size, dtype=np.float32)
        for view, values in ((tensor, expected), (tensor[10:-10], expected[10:-10])):
            async with client.adopt(view) as ref, client.adopt(place[: len(values)]) as out:
                segment = segment_of(torch, view)
                assert ref.region.byte_size == segment["total_size"]
                assert ref.offset == view.data_ptr() - segment["address"]
                result = await client.infer("add_one", {"INPUT0": ref}, outputs={"OUTPUT0": out})
                assert np.array_equal(await result.numpy("OUTPUT0"), values + 1)
            assert np.array_equal(torch_gpu.host(place)[: len(values)], values + 1)
        assert np.array_equal(torch_gpu.host(before), expected)
        del before, tensor, view, place, result


def segment_of(torch, tensor):
    """Return what torch knows of the piece of memory that a tensor lies in."""
    for each in torch.cuda.memory_snapshot():
        if 0 <= tensor.data_ptr() - each["address"] < each["total_size"]:
            return each
    raise AssertionError("the tensor is in no segment")


async def test_adopting_waits_for_the_producer(client, torch_gpu):
    tensor = torch_gpu.empty((1 << 20,))
    async with client.adopt(tensor) as ref:
        for value in range(ROUNDS):
            with torch_gpu.stream() as stream:
                torch_gpu.block(stream)
                torch_gpu.fill_(tensor, value)
                result = await client.infer("add_one", {"INPUT0": ref})
            assert (result["OUTPUT0"] == value + 1).all()


OTHER_ALLOCATOR = """
import asyncio, json, sys, warnings
warnings.simplefilter("ignore")
import torch
import triton_zerocopy as tz

async def main():
    tensor = torch.ones(4 << 20, device="cuda:0")
    async with tz.Client(sys.argv[1], memory="cuda:0") as client:
        message = "adopted"
        try:
            await client.adopt(tensor)
        except tz.CudaError as error:
            message = str(error)
        result = await client.infer("fixed", {"INPUT0": tensor[:4].cpu().numpy()})
        async with client.model("fixed") as model:
            result = await model.infer({"INPUT0": tensor[:4]})
            values = (await result.numpy("OUTPUT0")).tolist()
    print(json.dumps({"message": message, "values": values}))

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("expandable_segments:True", "expandable_segments"),
        ("backend:cudaMallocAsync", "stream-ordered pool"),
        ("backend:native", "adopted"),
    ],
)
def test_torchs_other_allocators(gpu_server, torch_gpu, setting, message):
    """What has no handle is refused, and goes in by a copy. A setting is for a whole process."""
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # the latter since torch 2.9
    done = run_program(OTHER_ALLOCATOR, gpu_server.grpc_url, **dict.fromkeys(names, setting))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert message in said["message"]
    assert said["values"] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("managed", "managed memory"),
        ("pool", "stream-ordered pool"),
        ("vmm", "expandable_segments"),
    ],
)
async def test_memory_that_has_no_handle(client, kind, message):
    with Memory(kind, 2 * GRANULE) as memory:
        memory.fill(0)
        with pytest.raises(tz.CudaError, match=message):
            await client.adopt(memory)
        async with client.model("add_one") as model:
            result = await model.infer({"INPUT0": memory})
            assert (await result.numpy("OUTPUT0") == 1).all()


async def test_memory_that_shares_its_handle(client):
    with Memory("device", 4096) as memory:
        memory.fill(0)
        with pytest.raises(tz.CudaError, match="below 2 MiB"):
            await client.adopt(memory)
        async with client.model("add_one") as model:
            result = await model.infer({"INPUT0": memory})
            assert (await result.numpy("OUTPUT0") == 1).all()


async def test_pinned_memory_is_no_device_memory(client):
    with Memory("pinned", 2 * GRANULE) as memory:
        with pytest.raises(tz.InputError, match="not in the memory of a GPU"):
            await client.adopt(memory)


def test_a_buffer_id_is_never_given_twice(machine, tell):
    """This is what an adoption recognises its memory by."""
    seen = []
    for _ in range(50):
        with Memory("device", 2 * GRANULE) as memory:
            facts = cudart.allocation_facts(memory.address + 4096)
            assert facts.base == memory.address
            assert facts.byte_size >= 2 * GRANULE
            assert facts.is_exportable
            assert not facts.is_pooled
            seen.append((memory.address, facts.buffer_id))
    assert len({number for _, number in seen}) == len(seen)
    tell(f"50 times cudaMalloc and cudaFree: {len({place for place, _ in seen})} addresses")


# Life and death


async def test_memory_goes_back_after_the_server_let_go(gpu_server, machine, monkeypatch):
    size = 256 * GRANULE
    known = {}
    free = cudart.free

    def watched(address):
        known[address] = registered(gpu_server)
        free(address)

    monkeypatch.setattr(cudart, "free", watched)
    before = free_bytes()
    async with tz.Client(gpu_server.grpc_url) as client:
        for _ in range(ROUNDS):
            region = await client.region(size, memory="cuda:0")
            name, address = region.name, region._address
            assert name in registered(gpu_server)
            assert before - free_bytes() >= size
            await region.write(full(3, 4))
            result = await client.infer("fixed", {"INPUT0": region.tensor((4,), "FP32")})
            assert (result["OUTPUT0"] == 4).all()
            await region.aclose()
            del region, result
            await until(lambda address=address: address in known)
            assert name not in known.pop(address)
            assert free_bytes() >= before - TOLERANCE


@needs_gcc
async def test_slots_go_back_after_large_calls(gpu_server, machine, gpu):
    before = free_bytes()
    async with tz.Client(gpu_server.grpc_url, memory="cuda:0") as client:
        async with client.model("memcpy_first", slots=2, **IN_PLACE) as model:
            x = full(2)
            kept = [await model.infer({"INPUT0": x}) for _ in range(2)]
            assert before - free_bytes() >= 4 * x.nbytes
        y = gpu.take(kept[0]["OUTPUT0"])
        del kept
    assert (gpu.host(y) == 2).all()  # a result outlives its client
    del y
    await until(lambda: not machine.live())


CALLERS_CONTEXT = """
import asyncio, json, sys
import numpy as np
from real_memory import driver, ok
import triton_zerocopy as tz

def current():
    return int(ok(driver().cuCtxGetCurrent()) or 0)

async def main(url):
    async with tz.Client(url, memory="cuda:0") as client, client.model("fixed") as model:
        result = await model.infer({"INPUT0": np.arange(4, dtype=np.float32)})
        await result.numpy("OUTPUT0")
        result["OUTPUT0"].__dlpack__(stream=1)
        async with model.lease() as lease:
            await lease.inputs["INPUT0"].write(np.ones(4, np.float32))
            await lease.infer()
        async with client.region(4096, memory="cuda:0"):
            return current()

ok(driver().cuInit(0))
print(json.dumps([current(), asyncio.run(main(sys.argv[1])), current()]))
"""


def test_the_callers_thread_gets_no_context(gpu_server):
    done = run_program(CALLERS_CONTEXT, gpu_server.grpc_url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0, 0, 0]


async def test_torchs_current_stream_and_device_stay(client, torch_gpu):
    torch = torch_gpu.torch
    with torch_gpu.stream() as stream:
        async with client.model("fixed") as model:
            result = await model.infer({"INPUT0": torch_gpu.tensor(full(1, 4))})
            torch_gpu.take(result["OUTPUT0"])
        assert torch.cuda.current_stream() == stream
        assert torch.cuda.current_device() == 0


# From model to model, from library to library


@needs_gcc
async def test_two_models_in_a_chain_without_the_host(client, gpu, monkeypatch):
    x = np.arange(LARGE, dtype=np.float32)
    async with (
        client.model("memcpy_first", **IN_PLACE) as first,
        client.model("memcpy_second", **IN_PLACE) as second,
    ):
        given = gpu.tensor(x)

        def refuse(*arguments):
            raise AssertionError("a copy between the host and the GPU")

        monkeypatch.setattr(Staging, "upload", refuse)
        monkeypatch.setattr(Staging, "download", refuse)
        between = await first.infer({"INPUT0": given})
        async with second.lease({"INPUT0": x.shape}) as lease:
            result = await lease.infer({"INPUT0": between["OUTPUT0"]})
            last = gpu.copy(gpu.take(result["OUTPUT0"]))
            del result
    assert np.array_equal(gpu.host(last), x)


async def test_jax_in_and_out(client, open_library):
    jax = open_library("jax")
    x = np.arange(4, dtype=np.float32)
    async with client.model("fixed") as model:
        result = await model.infer({"INPUT0": jax.tensor(x)})
        y = jax.take(result["OUTPUT0"])
        assert np.array_equal(jax.host(y), x + 1)
        result = await model.infer({"INPUT0": y * 2})
        assert np.array_equal(await result.numpy("OUTPUT0"), 2 * (x + 1) + 1)


@needs_gcc
async def test_jax_may_let_go_before_it_has_read(client, open_library):
    """Its work is on streams of its own, which DLPack does not tell."""
    jax = open_library("jax")
    async with client.model("memcpy_first", slots=1, **IN_PLACE) as model:
        jax.slow_copy(jax.tensor(full(0))).block_until_ready()
        for value in range(ROUNDS):
            async with model.lease() as lease:
                result = await lease.infer({"INPUT0": full(value)})
                taken = jax.take(result["OUTPUT0"])
                seen = jax.slow_copy(taken)
                del taken, result
            await model.infer({"INPUT0": full(-1)})
            assert (jax.host(seen) == value).all()


async def test_from_one_library_to_the_other(client, open_library):
    torch, cupy = open_library("torch"), open_library("cupy")
    x = np.arange(100, dtype=np.float32)
    async with client.model("add_one") as model:
        place = cupy.empty((100,))
        await model.infer({"INPUT0": torch.tensor(x)}, out={"OUTPUT0": place})
        result = await model.infer({"INPUT0": place})
        assert np.array_equal(torch.host(torch.take(result["OUTPUT0"])), x + 2)
        assert np.array_equal(cupy.host(cupy.take_interface(result["OUTPUT0"])), x + 2)


# Measured, not judged


class Ticker:
    """Sleeps for a millisecond again and again, and notes how late it wakes up."""

    longest = 0.0

    async def run(self):
        while True:
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.perf_counter() - due)


@needs_gcc
@pytest.mark.parametrize("source", ["numpy", "device"])
async def test_the_event_loop_while_large_calls_are_under_way(client, gpu, tell, request, source):
    count = 16
    if free_bytes() < 5 * count * 4 * LARGE:
        pytest.skip("the GPU has not enough memory free")
    async with client.model("memcpy_first", slots=count, **IN_PLACE) as model:
        x = full(1) if source == "numpy" else gpu.tensor(full(1))

        async def call():
            result = await model.infer({"INPUT0": x})
            return await result.numpy("OUTPUT0") if source == "numpy" else result["OUTPUT0"]

        for which in ("at first", "again"):
            ticker = Ticker()
            ticking = asyncio.create_task(ticker.run())
            begun = time.perf_counter()
            results = await asyncio.gather(*(call() for _ in range(count)))
            seconds = time.perf_counter() - begun
            await asyncio.sleep(0.002)
            ticking.cancel()
            moved = 2 * count * 4 * LARGE
            tell(
                f"{request.node.name}, {which}: the loop stood still for at most "
                f"{ticker.longest * 1e3:.1f} ms; {moved / MB / seconds:.0f} MB/s in and out"
            )
        got = results[-1] if source == "numpy" else await results[-1].numpy()
        assert (got == 1).all()
        del results, got


@pytest.mark.timeout(300)  # many processes, each with a context of its own
def test_what_cuda_answers(machine, tell):
    """A table for the emulation's documentation; what the library relies on is asserted."""
    real = {}
    for line in probes.table():
        tell(line)
        cells = [cell.strip() for cell in line.split("|")]
        real[cells[1]] = cells[2]
    capable = "memory: IS_LEGACY_CUDA_IPC_CAPABLE"
    assert real[f"device {capable}"] == "yes"
    assert {real[f"{kind} {capable}"] for kind in ("pool", "vmm", "managed")} == {"no"}
    assert real["pool memory: MEMPOOL_HANDLE"] == "one"
    assert real["managed memory: IS_MANAGED"] == "yes"
    assert real["opened, the large one: first byte"] == "0x33"
    assert real["its buffer id then"] == "another"


def run_program(program, *arguments, **environment):
    """Run a program in a process of its own, where this directory can be imported from."""
    here = os.path.dirname(__file__)
    path = filter(None, [here, os.environ.get("PYTHONPATH")])
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
