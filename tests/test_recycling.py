"""Memory of results is used again only when nobody can see it any more."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import triton_zerocopy as tz
from triton_zerocopy._recycling import LIMIT, SMALLEST, Recycler

ITEMS = SMALLEST // 4


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_comes_back_when_the_last_view_dies():
    recycler = Recycler()
    array = recycler.empty((ITEMS,), np.dtype(np.float32))
    place = address(array)
    views = [array[10:20], memoryview(array[5:]), np.from_dlpack(array), array.reshape(2, -1)[1]]
    del array
    while views:
        assert recycler.bytes_kept == 0
        assert address(recycler.empty((ITEMS,), np.dtype(np.float32))) != place
        recycler.clear()
        views.pop()
    assert recycler.bytes_kept == SMALLEST
    again = recycler.empty((2, ITEMS), np.dtype(np.float16))
    assert address(again) == place
    assert again.shape == (2, ITEMS)
    assert again.flags.writeable
    assert recycler.bytes_kept == 0


def test_small_arrays_and_objects_are_plain():
    recycler = Recycler()
    assert recycler.empty((3,), np.dtype(np.float32)).base is None
    assert recycler.empty((SMALLEST,), np.dtype(object)).base is None


def test_what_is_kept_is_bounded():
    recycler = Recycler()
    dtype = np.dtype(np.uint8)
    for _ in range(3):
        arrays = [recycler.empty((LIMIT // 4 + number,), dtype) for number in range(9)]
        del arrays
        assert recycler.bytes_kept <= LIMIT
    huge = recycler.empty((LIMIT + 1,), dtype)
    del huge
    assert recycler.bytes_kept <= LIMIT
    recycler.clear()
    assert recycler.bytes_kept == 0


def test_arrays_that_die_in_many_threads():
    recycler = Recycler()
    wrong = []

    def use(tag):
        for _ in range(50):
            array = recycler.empty((SMALLEST,), np.dtype(np.uint8))
            array[:] = tag
            if not (array == tag).all():
                wrong.append(tag)

    threads = [threading.Thread(target=use, args=(tag,)) for tag in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert recycler.bytes_kept <= 2 * 6 * SMALLEST, "a thread holds one while it takes another"


@pytest.mark.anyio
async def test_results_that_are_kept_never_change(server):
    kept = []
    async with tz.Client(server.grpc_url) as client, client.model("add_one") as model:
        for number in range(30):
            x = np.full(ITEMS, number, np.float32)
            result = await model.infer({"INPUT0": x})
            if number % 3 == 0:
                kept.append((number, result["OUTPUT0"][::7]))
    for number, array in kept:
        assert (array == number + 1).all()
