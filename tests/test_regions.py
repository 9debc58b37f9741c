"""Regions: memory of one's own, and what its limits do."""

from __future__ import annotations

import asyncio
import gc
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from support import forget, needs_strings, own_files, own_regions

import triton_zerocopy as tz
from triton_zerocopy._regions import system
from triton_zerocopy._regions.base import begin_calls
from triton_zerocopy._regions.budget import Budget
from triton_zerocopy._regions.system import SystemRegion

pytestmark = pytest.mark.anyio


async def test_infer_from_and_into_regions(server):
    async with tz.Client(server.grpc_url) as client, client.region(1 << 16) as region:
        assert (region.memory, region.byte_size, region.device_id) == ("system", 1 << 16, None)
        assert region.is_host_accessible
        assert not region.is_device_accessible
        x = region.array((256,), "float32", offset=0)
        x[:] = np.arange(256)
        result = await client.infer(
            "add_one",
            {"INPUT0": region.tensor((256,), "FP32", offset=0)},
            outputs={"OUTPUT0": region.tensor((256,), "FP32", offset=4096)},
            request_id="low",
        )
        np.testing.assert_array_equal(result["OUTPUT0"], np.arange(256) + 1)
        assert np.shares_memory(result["OUTPUT0"], region.array((256,), "float32", offset=4096))
        assert result.request_id == "low"
        inline = await client.infer("add_one", {"INPUT0": np.arange(3, dtype=">f4")})
        np.testing.assert_array_equal(inline["OUTPUT0"], [1, 2, 3])
        named = await client.infer(
            "two", {"A": np.zeros(4, np.int32), "B": np.ones(4, np.int32)}, outputs=["SUM"]
        )
        assert list(named) == ["SUM"]
        empty = await client.infer(
            "add_one", {"INPUT0": region.tensor((0,), "FP32")}, outputs=["OUTPUT0"]
        )
        assert empty["OUTPUT0"].shape == (0,)


async def test_region_tensors_in_a_model_are_not_copied(server):
    async with tz.Client(server.grpc_url) as client, client.region(4096) as region:
        async with client.model("two") as model:
            await region.write(np.arange(4, dtype=np.int32), offset=64)
            a = region.tensor((4,), "INT32", offset=64)
            b = np.ones(4, np.int32)
            for _ in range(2):
                result = await model.infer({"A": a, "B": b})
                np.testing.assert_array_equal(result["SUM"], np.arange(4) + 1)
            for wrong in (region.tensor((4,), "FP32"), region.tensor((5,), "INT32")):
                with pytest.raises(tz.InputError, match="model 'two', input 'A'"):
                    await model.infer({"A": wrong, "B": b})


async def test_write_and_read(server):
    async with tz.Client(server.grpc_url) as client, client.region(1 << 16) as region:
        x = np.arange(20, dtype=np.int16).reshape(4, 5)
        assert await region.write(x, offset=128) == 40
        back = await region.read((4, 5), "INT16", offset=128)
        np.testing.assert_array_equal(back, x)
        assert back.base is None
        assert await region.write(b"abc", offset=0) == 3
        assert bytes(await region.read((3,), "UINT8")) == b"abc"
        texts = np.array(["one", "zwei"], dtype=object)
        size = await region.write(texts, offset=256)
        assert size == 4 + 3 + 4 + 4
        assert (await region.read((2,), "BYTES", offset=256)).tolist() == [b"one", b"zwei"]


@needs_strings
async def test_strings_from_and_into_regions(server):
    async with tz.Client(server.grpc_url) as client, client.region(1 << 16) as region:
        size = await region.write(np.array(["one", "zwei"], dtype=object), offset=256)
        result = await client.infer(
            "shout",
            {"TEXT": region.tensor((2, 1), "BYTES", offset=256, byte_size=size)},
            outputs={"LOUD": region.tensor((2, 1), "BYTES", offset=512, byte_size=64)},
        )
        assert result["LOUD"].ravel().tolist() == [b"ONEONE", b"ZWEIZWEI"]


async def test_what_is_outside_is_refused(server):
    async with tz.Client(server.grpc_url) as client, client.region(100) as region:
        for make in (
            lambda: region.array((26,), "float32"),
            lambda: region.array((1,), "float32", offset=97),
            lambda: region.array((1,), "float32", offset=-4),
            lambda: region.array((-1,), "float32"),
            lambda: region.array((1,), object),
            lambda: region.array((2**62,), "float32", offset=2**62),
            lambda: region.tensor((26,), "FP32"),
            lambda: region.tensor((1,), "FP31"),
            lambda: region.tensor("FP32", [1]),
            lambda: region.tensor((1,), "BYTES"),
            lambda: region.tensor((1,), "BYTES", byte_size=101),
            lambda: region.tensor((2,), "FP32", byte_size=4),
            lambda: region.tensor(("a",), "FP32"),
        ):
            with pytest.raises(tz.InputError):
                make()
        with pytest.raises(tz.InputError):
            await region.write(np.zeros(26, np.float32))
        with pytest.raises(tz.InputError):
            await region.read((26,), "FP32")
        for size in (0, -1, 1.5, True):
            with pytest.raises(tz.InputError):
                client.region(size)
        with pytest.raises(tz.InputError):
            client.region(1, memory="wire")
        with pytest.raises(tz.CapacityError) as raised:
            await client.infer(
                "add_one",
                {"INPUT0": np.zeros(9, np.float32)},
                outputs={"OUTPUT0": region.tensor((8,), "FP32")},
            )
        assert raised.value.model_ran
        with pytest.raises(tz.InputError):
            await client.infer("add_one", {"INPUT0": "text"})
        with pytest.raises(tz.InferenceError):
            await client.infer("no_such_model", {"INPUT0": np.zeros(1, np.float32)})


async def test_a_closed_region(server):
    async with tz.Client(server.grpc_url) as client:
        async with client.region(64) as region:
            kept = region.array((16,), "float32")
            kept[:] = 3
        with pytest.raises(tz.RegionClosed):
            region.array((1,), "float32")
        with pytest.raises(tz.RegionClosed):
            await region.write(b"x")
        await region.aclose()
        assert own_regions() == set()
        np.testing.assert_array_equal(kept, np.full(16, 3))
        assert client.statistics().bytes_reserved == 64
        del kept
        assert client.statistics().bytes_reserved == 0


async def test_closing_a_region_waits_for_its_calls(server):
    async with tz.Client(server.grpc_url) as client, client.region(4096) as region:
        x = region.array((16,), "float32")
        x[:] = 0.3
        place = region.tensor((16,), "FP32", offset=1024)
        with pytest.raises(tz.InferTimeout):
            await client.infer(
                "slow",
                {"INPUT0": region.tensor((16,), "FP32")},
                outputs={"OUTPUT0": place},
                timeout=0.02,
            )
        output = region.array((16,), "float32", offset=1024)
        assert output[0] != np.float32(1.3)
        await region.aclose()
        assert output[0] == np.float32(1.3), "the late write came before the close ended"


async def test_closing_a_region_waits_for_calls_of_models(server):
    async with tz.Client(server.grpc_url) as client, client.model("slow", slots=1) as model:
        region = await client.region(4096)
        region.array((16,), "float32")[:] = 0.3
        for timeout in (5, 0.02):
            try:
                await model.infer({"INPUT0": region.tensor((16,), "FP32")}, timeout=timeout)
            except tz.InferTimeout:
                assert timeout < 1
        assert model.statistics().in_flight == 1
        assert region._calls == 1
        await region.aclose()
        assert model.statistics().in_flight == 0, "the server read it until then"


async def test_a_call_is_counted_in_all_regions_or_in_none(server):
    async with tz.Client(server.grpc_url) as client, client.region(64) as one:
        other = await client.region(64)
        await other.aclose()
        with pytest.raises(tz.RegionClosed):
            begin_calls([one, other])
        assert one._calls == 0


async def test_quiesce_gives_a_region_a_new_name_after_an_ambiguous_end(server):
    async with tz.Client(server.grpc_url) as client, client.region(64) as region:
        await region.quiesce()
        name = region.name
        region.begin_call()
        region.end_call(is_ambiguous=True)
        with pytest.raises(tz.RegionBusy, match="quiesce"):
            await region.write(b"x")
        with pytest.raises(tz.RegionBusy):
            await client.infer("add_one", {"INPUT0": region.tensor((4,), "FP32")})
        await region.quiesce()
        assert region.name != name
        await region.write(np.ones(4, np.float32))
        result = await client.infer("add_one", {"INPUT0": region.tensor((4,), "FP32")})
        np.testing.assert_array_equal(result["OUTPUT0"], np.full(4, 2))


async def test_mode_and_names(server):
    async with tz.Client(server.grpc_url) as client:
        async with client.region(64) as one, client.region(64) as two:
            assert one.name != two.name
            for name in own_regions():
                mode = os.stat(f"/dev/shm/{name}").st_mode
                assert stat.S_IMODE(mode) == 0o600
    group = os.getgid()
    async with tz.Client(server.grpc_url, shm_mode=0o660, shm_gid=group) as client:
        async with client.region(64):
            (name,) = own_regions()
            status = os.stat(f"/dev/shm/{name}")
            assert stat.S_IMODE(status.st_mode) == 0o660
            assert status.st_gid == group


async def test_the_budget(server):
    async with tz.Client(server.grpc_url, max_shm_bytes=10_000) as client:
        async with client.region(6000):
            with pytest.raises(tz.CapacityError, match="max_shm_bytes=10000, 6000 are held") as e:
                await client.region(6000)
            assert e.value.needed == 6000
        async with client.region(6000):
            pass
        async with client.model("add_one", slots=4) as model:
            with pytest.raises(tz.CapacityError):
                await model.infer({"INPUT0": np.zeros(10_000, np.float32)})
            result = await model.infer({"INPUT0": np.zeros(10, np.float32)})
            assert result["OUTPUT0"][0] == 1


async def test_a_full_dev_shm(server):
    free = os.statvfs("/dev/shm").f_bavail * os.statvfs("/dev/shm").f_frsize
    async with tz.Client(server.grpc_url) as client:
        with pytest.raises(tz.CapacityError, match=r"were wanted, /dev/shm has \d+ free"):
            await client.region(free * 4)
        async with client.model("fixed", shapes={"INPUT0": (4,)}) as model:
            assert model.statistics().available == 4


@pytest.mark.parametrize(
    ("number", "expected", "text"),
    [
        ("ENOSPC", tz.CapacityError, "free; make it larger"),
        ("EMFILE", tz.CapacityError, "ulimit -n"),
        ("EACCES", tz.RegionError, "shm_mode"),
        ("ENOENT", tz.RegionError, "mount a tmpfs"),
        ("EIO", tz.RegionError, "could not be created"),
    ],
)
@pytest.mark.parametrize("where", ["open", "posix_fallocate"])
async def test_what_the_kernel_refuses(monkeypatch, number, expected, text, where):
    import errno

    def refuse(*args):
        raise OSError(getattr(errno, number), "refused")

    monkeypatch.setattr(system.os, where, refuse)
    budget = Budget(None)
    with pytest.raises(expected, match=text):
        SystemRegion(100, owner_id="0" * 16, budget=budget)
    assert budget.bytes_reserved == 0
    assert own_files() == set()


async def test_a_forgotten_region_is_unlinked_with_a_warning():
    region = SystemRegion(100, owner_id="0" * 16, budget=Budget(None))
    assert len(own_files()) == 1
    with pytest.warns(ResourceWarning, match="never closed"):
        del region
        gc.collect()
    assert own_files() == set()


FORK = """
import gc, os, sys
from triton_zerocopy._regions.budget import Budget
from triton_zerocopy._regions.system import SystemRegion
region = SystemRegion(100, owner_id="0" * 16, budget=Budget(None))
child = os.fork()
if child == 0:
    del region
    gc.collect()
    os._exit(0)
os.waitpid(child, 0)
print(os.path.exists("/dev/shm" + region.key))
region.free()
print(os.path.exists("/dev/shm" + region.key))
"""


async def test_a_forked_child_unlinks_nothing():
    assert await run_python(FORK) == ["True", "False"]


async def test_no_resource_tracker():
    """Nothing of multiprocessing watches, and unlinks, what this process shares."""
    code = "import triton_zerocopy, sys; print('multiprocessing.resource_tracker' in sys.modules)"
    assert await run_python(code) == ["False"]


async def run_python(code):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode().split()


async def test_cancelling_the_making_of_a_region_leaves_nothing(server):
    async with tz.Client(server.grpc_url) as client:
        await client.model("fixed")
        for turns in range(12):
            task = asyncio.ensure_future(client.region(1 << 20).__aenter__())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                region = await task
            except asyncio.CancelledError:
                continue
            await region.aclose()


@pytest.mark.parametrize("way", ["model", "lease", "client"])
async def test_a_region_that_the_server_lost_is_registered_anew(server, way):
    """The caller's own, not the slot's: also when several calls find it out at once."""
    async with (
        tz.Client(server.grpc_url, memory="system") as client,
        client.region(4096) as region,
        client.model("fixed", slots=3) as model,
    ):
        region.array((4,), "float32")[:] = 5
        inputs = {"INPUT0": region.tensor((4,), "FP32")}

        async def call():
            if way == "model":
                return (await model.infer(inputs))["OUTPUT0"]
            if way == "client":
                return (await client.infer("fixed", inputs))["OUTPUT0"]
            async with model.lease() as lease:
                return (await lease.infer(inputs))["OUTPUT0"].copy()

        for _ in range(3):
            await asyncio.gather(*(call() for _ in range(3)))
            await forget(client, region.name)
            for output in await asyncio.gather(*(call() for _ in range(3))):
                assert np.array_equal(output, np.full(4, 6))
        result = await model.infer({"INPUT0": np.zeros(4, np.float32)})
        assert np.array_equal(result["OUTPUT0"], np.ones(4))
