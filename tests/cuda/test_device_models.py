"""Models whose slots are on a GPU: what goes in, what comes out."""

from __future__ import annotations

import asyncio

import ml_dtypes
import numpy as np
import pytest
from models import has_strings
from support import until, url_of

import triton_zerocopy as tz

pytestmark = pytest.mark.anyio

X = np.arange(4, dtype=np.float32)


@pytest.fixture
async def client(gpu_server):
    async with tz.Client(gpu_server.grpc_url, memory="cuda:0") as client:
        yield client


async def test_numpy_in_and_device_arrays_out(client, gpu):
    async with client.model("fixed") as model:
        assert model.memory == "cuda:0"
        result = await model.infer({"INPUT0": X})
        y = result["OUTPUT0"]
        assert isinstance(y, tz.DeviceArray)
        assert (y.shape, y.datatype, y.device_id) == ((4,), "FP32", 0)
        assert (y.ndim, y.nbytes, len(y), y.dtype) == (1, 16, 4, np.float32)
        assert np.array_equal(await y.numpy(), X + 1)
        assert np.array_equal(await result.numpy("OUTPUT0"), X + 1)
        assert np.array_equal(gpu.host(gpu.take(y)), X + 1)
        assert np.array_equal(gpu.host(gpu.take_interface(y)), X + 1)


async def test_over_http(gpu_server, gpu):
    """The handle of the memory travels as text."""
    async with tz.Client(url_of(gpu_server, "http"), memory="cuda:0") as client:
        async with client.model("fixed") as model:
            for _ in range(2):
                result = await model.infer({"INPUT0": gpu.tensor(X)})
                assert np.array_equal(await result.numpy("OUTPUT0"), X + 1)
        async with client.region(4096, memory="cuda:0") as region:
            transport = client._runtime.transport
            assert await transport.has_cuda(region.name, timeout=5)
            assert region.name in await transport.list_cuda(timeout=5)


async def test_device_tensors_in(client, gpu):
    async with client.model("add_one") as model:
        for array in (
            X,
            np.arange(3, dtype=np.float32),
            np.arange(300_000, dtype=np.float32),  # more than the slot has by then
            np.zeros(0, np.float32),
        ):
            for given in (gpu.tensor(array), gpu.interface_only(gpu.tensor(array))):
                result = await model.infer({"INPUT0": given})
                assert np.array_equal(await result.numpy("OUTPUT0"), array + 1)


async def test_results_are_the_callers_own(client, gpu):
    """They keep their bytes whatever is called later, and go in again where they are."""
    async with client.model("fixed", slots=1) as model:
        first = (await model.infer({"INPUT0": X}))["OUTPUT0"]
        second = (await model.infer({"INPUT0": first}))["OUTPUT0"]
        third = (await model.infer({"INPUT0": second}))["OUTPUT0"]
        assert np.array_equal(await first.numpy(), X + 1)
        assert np.array_equal(await second.numpy(), X + 2)
        assert np.array_equal(await third.numpy(), X + 3)


@pytest.mark.parametrize("size", [1000, 40_000, 3_000_000, 9_000_000])
async def test_sizes_of_every_way_of_staging(client, gpu, size):
    """At once, in a thread, in several blocks; and back the same way."""
    async with client.model("add_one") as model:
        array = np.arange(size, dtype=np.float32)
        result = await model.infer({"INPUT0": array})
        assert np.array_equal(await result.numpy("OUTPUT0"), array + 1)
        strided = np.arange(2 * size, dtype=np.float32)[::2]
        result = await model.infer({"INPUT0": strided})
        assert np.array_equal(await result.numpy("OUTPUT0"), strided + 1)
        result = await model.infer({"INPUT0": array.astype(">f4")})
        assert np.array_equal(await result.numpy("OUTPUT0"), array + 1)


LAYOUTS = {
    "transposed": lambda t: t[: 2 * 6].as_strided((2, 6), (4, 8)),
    "every other row": lambda t: t.as_strided((5, 2), (16, 4)),
    "every other column": lambda t: t.as_strided((4, 2), (16, 8)),
    "a size-1 dimension with an odd stride": lambda t: t.as_strided((10, 2), (8, 4))[:1],
    "repeated rows": lambda t: t.as_strided((7, 2), (0, 4)),
    "one repeated element": lambda t: t.as_strided((3, 2), (0, 0)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.emulated
async def test_strides(client, gpu, layout):
    """Whatever the layout, the elements arrive in order."""
    async with client.model("echo") as model:
        base = gpu.tensor(np.arange(100, dtype=np.float32))
        view = LAYOUTS[layout](base)
        expected = gpu.host(view)
        if expected.shape[1] != 2:
            view, expected = view.transpose(1, 0), expected.T
        others = {
            name: np.zeros((1, 2), spec.dtype)
            for name, spec in model.inputs.items()
            if name != "FP32"
        }
        result = await model.infer({**others, "FP32": view}, outputs=["OUT_FP32"])
        assert np.array_equal(await result.numpy("OUT_FP32"), expected)


async def test_every_datatype_keeps_its_bits(client, gpu):
    async with client.model("echo") as model:
        rng = np.random.default_rng(3)
        arrays = {}
        for name, spec in model.inputs.items():
            raw = rng.integers(0, 2 if name == "BOOL" else 100, (5, 2))
            arrays[name] = raw.astype(spec.dtype)
        tensors = {name: gpu.tensor(array) for name, array in arrays.items()}
        for given in (arrays, tensors):
            result = await model.infer(given)
            for name, array in arrays.items():
                back = await result.numpy(f"OUT_{name}")
                assert back.dtype == array.dtype
                assert back.tobytes() == array.tobytes(), name
                taken = gpu.host(gpu.take(result[f"OUT_{name}"]))
                assert taken.tobytes() == array.tobytes(), name
        assert arrays["BF16"].dtype == ml_dtypes.bfloat16


async def test_rows_and_batches(client, gpu):
    """Rows that lie apart, and more of them than a request takes."""
    async with client.model("rows", slots=2) as model:
        batch = np.arange(30, dtype=np.float32).reshape(10, 3)
        on_gpu = gpu.tensor(batch)
        ways = (
            batch,
            on_gpu,
            list(batch),
            [gpu.tensor(row) for row in batch],
            [on_gpu[index] for index in range(10)],
        )
        for given in ways:
            result = await model.infer({"INPUT0": given})
            assert np.array_equal(await result.numpy("OUTPUT0"), batch + 1)
            assert np.array_equal(await result.numpy("SUM"), batch.sum(1, keepdims=True))


async def test_out(client, gpu):
    """Into tensors on the GPU, strided or not, and into numpy arrays; alone and in parts."""
    async with client.model("rows") as model:
        for count in (3, 10):
            batch = np.arange(3 * count, dtype=np.float32).reshape(count, 3)
            place = gpu.empty((count, 3))
            sums = np.zeros((count, 1), np.float32)
            result = await model.infer({"INPUT0": batch}, out={"OUTPUT0": place, "SUM": sums})
            assert result["OUTPUT0"] is place
            assert result["SUM"] is sums
            assert np.array_equal(gpu.host(place), batch + 1)
            assert np.array_equal(sums, batch.sum(1, keepdims=True))
            assert np.array_equal(await result.numpy("OUTPUT0"), batch + 1)

            wide = gpu.tensor(np.full((count, 5), -1, np.float32))
            await model.infer({"INPUT0": batch}, out={"OUTPUT0": wide[:, 1:4]})
            expected = np.full((count, 5), -1, np.float32)
            expected[:, 1:4] = batch + 1
            assert np.array_equal(gpu.host(wide), expected)


async def test_an_array_of_ours_as_out(client, gpu):
    async with client.model("fixed") as model:
        place = (await model.infer({"INPUT0": X}))["OUTPUT0"]
        result = await model.infer({"INPUT0": X + 1}, out={"OUTPUT0": place})
        assert result["OUTPUT0"] is place
        assert np.array_equal(await place.numpy(), X + 2)


async def test_outputs_of_unknown_size(client, gpu):
    """They come inside the answer at first; in either case they are on the GPU."""
    async with client.model("count") as model:
        for size in (5, 5, 0, 3):
            result = await model.infer({"N": np.array([size], np.int32)})
            assert isinstance(result["OUTPUT0"], tz.DeviceArray)
            assert np.array_equal(await result.numpy("OUTPUT0"), np.arange(size))
        with pytest.raises(tz.CapacityError) as raised:
            await model.infer({"N": np.array([5000], np.int32)})
        assert raised.value.model_ran
    async with client.model("count", repeatable=True) as model:
        for size in (2, 5000):
            result = await model.infer({"N": np.array([size], np.int32)})
            assert np.array_equal(await result.numpy("OUTPUT0"), np.arange(size))


@pytest.mark.skipif(not has_strings(), reason="this server takes no BYTES")
async def test_bytes_go_inside_the_messages(client, gpu):
    async with client.model("shout", output_bytes={"LOUD": 1000}) as model:
        result = await model.infer({"TEXT": [["a"], ["bc"]]})
        assert result["LOUD"].tolist() == [[b"AA"], [b"BCBC"]]
        assert (await result.numpy("LOUD")).tolist() == [[b"AA"], [b"BCBC"]]


async def test_placed_in_regions(client, gpu):
    """Region.tensor on a GPU, as an input and an output, and on the host next to it."""
    async with (
        client.region(1 << 16, memory="cuda:0") as region,
        client.region(1 << 12, memory="system") as host,
        client.model("two") as model,
    ):
        assert (region.memory, region.device_id) == ("cuda:0", 0)
        assert (region.is_host_accessible, region.is_device_accessible) == (False, True)
        a = region.array((4,), "int32", offset=256)
        assert isinstance(a, tz.DeviceArray)
        gpu.fill_(gpu.take(a), 7)
        await host.write(np.arange(4, dtype=np.int32))
        inputs = {"A": region.tensor((4,), "INT32", offset=256), "B": host.tensor((4,), "INT32")}
        result = await model.infer(inputs)
        assert np.array_equal(await result.numpy("SUM"), 7 + np.arange(4))

        outputs = {"SUM": region.tensor((4,), "INT32", offset=4096)}
        result = await client.infer("two", inputs, outputs=outputs)
        assert np.array_equal(await result.numpy("SUM"), 7 + np.arange(4))
        assert np.array_equal(await region.read((4,), "INT32", offset=4096), 7 + np.arange(4))

        assert await region.write(gpu.tensor(np.arange(4, dtype=np.int32)), offset=256) == 16
        assert np.array_equal(await region.read((4,), "INT32", offset=256), np.arange(4))
        assert await region.write(b"abcd") == 4
        assert (await region.read((4,), "UINT8")).tobytes() == b"abcd"


async def test_host_models_take_device_regions(gpu_server, gpu):
    """A placed tensor is where the caller says, whatever the model's own memory is."""
    async with (
        tz.Client(gpu_server.grpc_url) as client,
        client.region(4096, memory="cuda:0") as region,
        client.model("fixed", memory="system") as model,
    ):
        with gpu.stream() as stream, gpu.block(stream) as gate:
            gpu.fill_(gpu.take(region.array((4,), "float32")), 3)
            call = asyncio.create_task(model.infer({"INPUT0": region.tensor((4,), "FP32")}))
            await asyncio.sleep(0)
            gate.open()
            assert np.array_equal((await call)["OUTPUT0"], np.full(4, 4))


async def test_leases_in_place(client, gpu):
    async with client.model("rows", shapes={"INPUT0": (4, 3)}) as model:
        async with model.lease() as lease:
            x = lease.inputs["INPUT0"]
            assert isinstance(x, tz.DeviceArray)
            gpu.fill_(gpu.take(x), 2)
            result = await lease.infer()
            assert np.array_equal(await result.numpy("OUTPUT0"), np.full((4, 3), 3))
            gpu.fill_(gpu.take(x[1:3]), 5)
            result = await lease.infer(shapes={"INPUT0": (3, 3)})
            assert result["SUM"].shape == (3, 1)
            assert (await result.numpy("SUM")).ravel().tolist() == [6, 15, 15]
            batch = np.arange(6, dtype=np.float32).reshape(2, 3)
            for given in (batch, gpu.tensor(batch)):
                result = await lease.infer({"INPUT0": given})
                assert np.array_equal(await result.numpy("OUTPUT0"), batch + 1)
        with pytest.raises(tz.LeaseReleased):
            result["SUM"]
        await until(lambda: model.statistics().available == 4)


async def test_a_lease_with_an_output_of_unknown_size(client, gpu):
    async with client.model("count") as model, model.lease() as lease:
        gpu.fill_(gpu.take(lease.inputs["N"]), 6)
        for _ in range(2):
            result = await lease.infer()
            assert isinstance(result["OUTPUT0"], tz.DeviceArray)
            assert np.array_equal(await result.numpy("OUTPUT0"), np.arange(6))


async def test_poison(gpu_server, gpu):
    async with (
        tz.Client(gpu_server.grpc_url, memory="cuda:0", poison=True) as client,
        client.model("fixed") as model,
        model.lease() as lease,
    ):
        for value in (1, 2):
            gpu.fill_(gpu.take(lease.inputs["INPUT0"]), value)
            result = await lease.infer()
            assert np.array_equal(await result.numpy("OUTPUT0"), np.full(4, value + 1))


async def test_many_at_a_time(client, gpu):
    """Each gets its own answer, from host and device, small and large, by infer and lease."""
    async with client.model("add_one", slots=3) as model:

        async def call(tag):
            array = np.full(1 + tag * 977, tag, np.float32)
            given = gpu.tensor(array) if tag % 2 else array
            if tag % 3:
                result = await model.infer({"INPUT0": given})
                return np.array_equal(await result.numpy("OUTPUT0"), array + 1)
            async with model.lease({"INPUT0": array.shape}) as lease:
                result = await lease.infer({"INPUT0": given})
                return np.array_equal(await result.numpy("OUTPUT0"), array + 1)

        assert all(await asyncio.gather(*(call(tag) for tag in range(60))))


async def test_arrays_can_be_written(client, gpu):
    async with client.model("fixed") as model, model.lease() as lease:
        x = lease.inputs["INPUT0"]
        await x.write(X)
        assert np.array_equal(await x.numpy(), X)
        result = await lease.infer()
        assert np.array_equal(await result.numpy("OUTPUT0"), X + 1)
        with pytest.raises(tz.InputError, match="nothing is cast"):
            await x.write(X.astype(np.float64))
        with pytest.raises(tz.InputError, match="broadcast"):
            await x.write(X[:1])
        with pytest.raises(TypeError, match="await array.write"):
            x[:] = X
        with pytest.raises(TypeError, match="await array.numpy"):
            np.asarray(x)
