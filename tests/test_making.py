"""Attempts to make regions at the same time: none fails because of another one."""

from __future__ import annotations

import asyncio

import pytest

import triton_zerocopy as tz
from triton_zerocopy._making import Making

pytestmark = pytest.mark.anyio


class Memory:
    """So many bytes; who wants more than there is takes all of it for some rounds, and fails."""

    def __init__(self, byte_size):
        self.free = byte_size
        self.attempts = []

    def take(self, byte_size, rounds=3):
        async def attempt():
            self.attempts.append(byte_size)
            taken = min(byte_size, self.free)
            self.free -= taken
            for _ in range(rounds):
                await asyncio.sleep(0)
            if taken < byte_size:
                self.free += taken
                raise tz.CapacityError(f"{byte_size} bytes were wanted", needed=byte_size)
            return byte_size

        return attempt

    def give_back(self, byte_size, ends):
        end = asyncio.get_running_loop().create_future()
        ends.add(end)

        def give():
            self.free += byte_size
            ends.discard(end)
            end.set_result(None)

        return give


@pytest.mark.parametrize("order", [(9, 1, 2), (1, 9, 2), (1, 2, 9), (9, 9, 1, 2)])
@pytest.mark.parametrize("rounds", [(1, 5), (5, 1), (3, 3)])
async def test_small_ones_beside_one_that_is_too_large(order, rounds):
    memory, making = Memory(4), Making(set())
    work = [making.make(memory.take(size, rounds[number % 2])) for number, size in enumerate(order)]
    results = await asyncio.gather(*work, return_exceptions=True)
    for size, result in zip(order, results, strict=True):
        assert isinstance(result, tz.CapacityError) if size == 9 else result == size
    assert memory.free == 1


async def test_one_that_comes_while_another_tries_again():
    memory, making = Memory(4), Making(set())
    large = asyncio.create_task(making.make(memory.take(9, 10)))
    with pytest.raises(tz.CapacityError):
        await making.make(memory.take(8))
    while len(memory.attempts) < 4:
        await asyncio.sleep(0)
    assert await making.make(memory.take(4)) == 4
    with pytest.raises(tz.CapacityError):
        await large


async def test_what_is_given_back_is_waited_for():
    ends = set()
    memory, making = Memory(0), Making(ends)
    gives = [memory.give_back(2, ends) for _ in range(2)]
    task = asyncio.create_task(making.make(memory.take(3)))
    for give in gives:
        for _ in range(20):
            await asyncio.sleep(0)
        assert not task.done()
        give()
    assert await task == 3


async def test_other_errors_are_told_at_once():
    making = Making(set())

    async def attempt():
        attempts.append(None)
        raise KeyError("x")

    attempts = []
    with pytest.raises(KeyError):
        await making.make(attempt)
    assert len(attempts) == 1
    assert await making.make(Memory(4).take(4)) == 4


async def test_a_cancelled_one_is_not_waited_for():
    memory, making = Memory(4), Making(set())
    held = asyncio.create_task(making.make(memory.take(4, 10**9)))
    await asyncio.sleep(0)
    other = asyncio.create_task(making.make(memory.take(1)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not other.done()
    held.cancel()
    memory.free += 4
    assert await other == 1


async def test_one_that_was_alone_is_not_tried_again():
    memory, making = Memory(4), Making(set())
    for _ in range(2):
        with pytest.raises(tz.CapacityError):
            await making.make(memory.take(9))
    assert memory.attempts == [9, 9]
