"""Many timeouts with one timer, each like asyncio.timeout."""

from __future__ import annotations

import asyncio

import pytest

from triton_zerocopy._deadlines import Deadlines

pytestmark = pytest.mark.anyio


@pytest.fixture
async def deadlines():
    made = Deadlines(asyncio.get_running_loop())
    yield made
    made.close()


async def test_it_expires(deadlines):
    loop = asyncio.get_running_loop()
    start = loop.time()
    with pytest.raises(TimeoutError):
        with deadlines.limit(0.05):
            await asyncio.Future()
    assert 0.04 < loop.time() - start < 5
    assert asyncio.current_task().cancelling() == 0


async def test_what_is_done_in_time_is_left_alone(deadlines):
    with deadlines.limit(0.02):
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    with deadlines.limit(None):
        await asyncio.sleep(0)


async def test_a_later_and_an_earlier_one(deadlines):
    order = []

    async def wait(name, seconds):
        with pytest.raises(TimeoutError):
            with deadlines.limit(seconds):
                await asyncio.Future()
        order.append(name)

    await asyncio.gather(wait("late", 0.15), wait("early", 0.03), wait("middle", 0.09))
    assert order == ["early", "middle", "late"]


async def test_a_cancel_from_outside_stays_a_cancel(deadlines):
    async def wait():
        with deadlines.limit(10):
            await asyncio.Future()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancel_in_the_same_turn_as_the_expiry_wins(deadlines):
    async def wait():
        with deadlines.limit(0.01) as deadline:
            found.append(deadline)
            await asyncio.Future()

    found = []
    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    found[0].expire()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_inside_asyncio_timeout(deadlines):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            with deadlines.limit(10):
                await asyncio.Future()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            with deadlines.limit(0.02):
                await asyncio.Future()


async def test_other_errors_pass(deadlines):
    with pytest.raises(KeyError):
        with deadlines.limit(10):
            raise KeyError


async def test_zero_expires_at_the_next_wait(deadlines):
    with pytest.raises(TimeoutError):
        with deadlines.limit(0):
            await asyncio.Future()


async def test_one_timer_for_all(deadlines):
    loop = asyncio.get_running_loop()
    made = []
    real = loop.call_at

    class Counting:
        def __getattr__(self, name):
            return getattr(loop, name)

        def call_at(self, *args):
            made.append(args)
            return real(*args)

    for _ in range(30):  # whether uvloop's timer tells a later time depends on the time
        counted = Deadlines(Counting())
        for _ in range(20):
            with counted.limit(30):
                await asyncio.sleep(0)
        counted.close()
        assert len(made) == 1
        made.clear()
        await asyncio.sleep(0.001)
