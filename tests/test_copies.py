"""No needless copy: what a call allocates tells how often it copied."""

from __future__ import annotations

import mmap
import resource
import tracemalloc

import numpy as np
import pytest

import triton_zerocopy as tz
from triton_zerocopy import _copying

pytestmark = pytest.mark.anyio

SIZE = 4 << 20  # bytes


async def peak_of(call):
    """Return the most bytes that a call had allocated, the result included."""
    await call()
    await call()  # the sizes of variable outputs are known now
    tracemalloc.start()
    try:
        await call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def test_infer_allocates_nothing_once_its_results_come_back(server):
    """Results that nobody holds any more give their memory to the next."""
    base = np.zeros((2, SIZE // 4), np.float32)
    values = {
        "contiguous": base[0],
        "strided": np.zeros(SIZE // 2, np.float32)[::2],
        "byte-swapped": base[0].astype(">f4"),
    }
    async with tz.Client(server.grpc_url) as client, client.model("add_one") as model:
        for name, x in values.items():
            peak = await peak_of(lambda x=x: model.infer({"INPUT0": x}))
            assert peak < 0.1 * SIZE, name


async def test_infer_allocates_its_result_and_nothing_else(server):
    x = np.zeros(SIZE // 4, np.float32)
    async with tz.Client(server.grpc_url) as client, client.model("add_one") as model:
        held = []

        async def call():
            held.append(await model.infer({"INPUT0": x}))

        assert SIZE <= await peak_of(call) < 1.1 * SIZE


async def test_out_allocates_nothing(server):
    x, out = np.zeros(SIZE // 4, np.float32), np.zeros(SIZE // 4, np.float32)
    async with tz.Client(server.grpc_url) as client, client.model("add_one") as model:
        peak = await peak_of(lambda: model.infer({"INPUT0": x}, out={"OUTPUT0": out}))
        assert peak < 0.1 * SIZE


async def test_a_lease_allocates_nothing(server):
    async with tz.Client(server.grpc_url) as client, client.model("add_one") as model:

        async def call():
            async with model.lease({"INPUT0": (SIZE // 4,)}) as lease:
                lease.inputs["INPUT0"][:] = 1
                assert (await lease.infer())["OUTPUT0"][-1] == 2

        assert await peak_of(call) < 0.1 * SIZE


async def test_a_split_batch_and_rows_allocate_the_whole_output_once(server):
    held = []
    width = SIZE // 4 // 16
    x = np.zeros((16, width), np.float32)
    async with tz.Client(server.grpc_url) as client, client.model("wide_rows") as model:
        for value in (x, list(x)):

            async def call(value=value):
                held.append(await model.infer({"INPUT0": value}))

            assert SIZE <= await peak_of(call) < 1.2 * SIZE


def layouts():
    plain = np.arange(1001, dtype=np.float32)
    square = np.arange(7 * 13 * 5, dtype=np.int16).reshape(7, 13, 5)
    return {
        "plain": (plain, plain),
        "strided": (np.empty(1001, np.float32), np.repeat(plain, 2)[::2]),
        "backwards": (np.empty(1001, np.float32), plain[::-1]),
        "byte-swapped": (np.empty(1001, np.float32), plain.astype(">f4")),
        "Fortran": (np.empty((7, 13, 5), np.int16), np.asfortranarray(square)),
        "a part of a larger one": (np.empty((9, 13, 5), np.int16)[1:8], square),
        "few rows": (np.empty((1, 455), np.int16), square.reshape(1, 455)),
        "one row, strided": (np.empty((1, 455), np.int16), np.empty((1, 910), np.int16)[:, ::2]),
    }


@pytest.mark.parametrize("name", layouts())
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_the_pieces_of_a_copy_are_the_whole_of_it(monkeypatch, name, threads):
    monkeypatch.setattr(_copying, "PIECE", 64)
    monkeypatch.setattr(_copying, "THREADS", threads)
    target, source = layouts()[name]
    target = np.full_like(target, 77)
    jobs = _copying.copy_jobs(target, source)
    assert len(jobs) == (1 if name == "one row, strided" else threads)
    for job in reversed(jobs):
        job()
    np.testing.assert_array_equal(target, source)


def test_small_copies_and_objects_are_not_cut():
    small = np.zeros(_copying.PIECE * 2 - 1, np.uint8)
    assert len(_copying.copy_jobs(small, small)) == 1
    objects = np.full(_copying.PIECE, None)
    assert len(_copying.copy_jobs(objects, objects)) == 1


async def test_the_pages_of_a_region_are_there_before_it_is_used(server):
    """A page's first use takes longer than its copy, and would be on the event loop."""
    async with tz.Client(server.grpc_url) as client:
        async with client.region(16 << 20) as region:
            array = region.array((16 << 20,), np.uint8)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            array[:: mmap.PAGESIZE] = 1
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < 400  # of 4096 pages
