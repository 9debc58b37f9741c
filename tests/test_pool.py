"""The pool: who may use which slot. No server needed."""

from __future__ import annotations

import asyncio
from contextlib import closing

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from triton_zerocopy._errors import PoolClosed, PoolError, PoolExhausted
from triton_zerocopy._pool import Pool
from triton_zerocopy._slot_states import PoolItem, SlotState

pytestmark = pytest.mark.anyio


class Item(PoolItem):
    pass


def make_pool(capacity=2, **options):
    discarded = []
    return Pool(Item, discarded.append, capacity=capacity, **options), discarded


async def until_waiting(pool, count):
    """Let tasks run until so many of them wait."""
    while pool.statistics().waiting != count:
        await asyncio.sleep(0)


async def test_items_are_reused_and_bounded():
    pool, discarded = make_pool()
    one, two = await pool.acquire(), await pool.acquire()
    assert one is not two
    assert pool.acquire_nowait() is None
    pool.release(one)
    assert await pool.acquire() is one
    assert not discarded


async def test_waiters_are_served_in_order():
    pool, _ = make_pool(capacity=1)
    item = await pool.acquire()
    order = []

    async def user(number):
        mine = await pool.acquire()
        order.append(number)
        pool.release(mine)

    tasks = []
    for number in range(5):
        tasks.append(asyncio.create_task(user(number)))
        await until_waiting(pool, number + 1)
    pool.release(item)
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3, 4]


async def test_nobody_overtakes_a_waiter():
    """An item that is free while somebody is being woken is not up for grabs."""
    pool, _ = make_pool(capacity=1)
    item = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await until_waiting(pool, 1)
    pool.release(item)
    assert pool.acquire_nowait() is None
    assert await waiting is item


async def test_cancel_after_delivery_passes_the_item_on():
    """The item was delivered, but the waiter's task was cancelled before it ran."""
    pool, _ = make_pool(capacity=1)
    item = await pool.acquire()
    first, second = asyncio.create_task(pool.acquire()), asyncio.create_task(pool.acquire())
    await until_waiting(pool, 2)
    pool.release(item)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second is item


async def test_cancel_before_delivery_leaves_the_line():
    pool, _ = make_pool(capacity=1)
    item = await pool.acquire()
    first, second = asyncio.create_task(pool.acquire()), asyncio.create_task(pool.acquire())
    await until_waiting(pool, 2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert pool.statistics().waiting == 1
    pool.release(item)
    assert await second is item


async def test_max_waiting():
    pool, _ = make_pool(capacity=1, max_waiting=1, name="model 'm'")
    item = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await until_waiting(pool, 1)
    with pytest.raises(PoolExhausted, match=r"model 'm': all 1 slots .* \(max_waiting=1\)"):
        await pool.acquire()
    part = asyncio.create_task(pool.acquire(may_queue=True))
    await until_waiting(pool, 2)
    pool.release(item)
    pool.release(await waiting)
    pool.release(await part)


async def test_a_parked_item_makes_room_for_a_spare():
    pool, discarded = make_pool(capacity=1)
    item = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await until_waiting(pool, 1)
    pool.park(item)
    spare = await waiting
    assert spare is not item
    pool.unpark(item)
    assert discarded == [item], "one item too many"
    pool.release(spare)
    assert pool.statistics().available == 1


async def test_an_unparked_item_is_used_again():
    pool, discarded = make_pool(capacity=1)
    item = await pool.acquire()
    pool.park(item)
    pool.unpark(item)
    assert await pool.acquire() is item
    assert not discarded


async def test_a_quarantined_item_counts_until_it_is_restored():
    pool, _ = make_pool(capacity=1)
    item = await pool.acquire()
    pool.depart(item)
    pool.arrive(item)
    pool.quarantine(item)
    assert pool.acquire_nowait() is None
    waiting = asyncio.create_task(pool.acquire())
    await until_waiting(pool, 1)
    pool.restore(item)
    assert await waiting is item


async def test_a_retired_item_is_replaced():
    pool, discarded = make_pool(capacity=1)
    item = await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await until_waiting(pool, 1)
    pool.retire(item)
    assert await waiting is not item
    assert discarded == [item]


async def test_close_fails_waiters_and_drains():
    pool, discarded = make_pool(capacity=2)
    one, two = await pool.acquire(), await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await until_waiting(pool, 1)
    pool.park(two)
    assert await waiting not in (one, two)
    late = asyncio.create_task(pool.acquire())
    await until_waiting(pool, 1)
    pool.close()
    with pytest.raises(PoolClosed):
        await late
    with pytest.raises(PoolClosed):
        await pool.acquire()
    assert discarded == [two]
    draining = asyncio.create_task(pool.drained())
    pool.release(one)
    await asyncio.sleep(0)
    assert not draining.done()
    pool.release(waiting.result())
    await draining
    assert len(discarded) == 3


@pytest.mark.parametrize("move", ["release", "park", "quarantine", "depart", "arrive"])
async def test_illegal_moves_are_refused(move):
    pool, _ = make_pool()
    item = await pool.acquire()
    pool.release(item)
    with pytest.raises(PoolError, match="a slot cannot go from free to"):
        getattr(pool, move)(item)


async def test_many_cancels_lose_nothing():
    """Random cancels and timeouts, many tasks: every item comes back, none is held twice."""
    import random

    rng = random.Random(7)
    pool, _ = make_pool(capacity=4)
    held = set()

    async def user():
        async with asyncio.timeout(rng.random() * 0.02 if rng.random() < 0.3 else 30):
            item = await pool.acquire()
            assert item not in held
            held.add(item)
            try:
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                held.remove(item)
                pool.release(item)

    tasks = [asyncio.create_task(user()) for _ in range(2000)]
    for task in tasks:
        if rng.random() < 0.3:
            task.cancel()
        if rng.random() < 0.1:
            await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(r) for r in results} <= {type(None), TimeoutError, asyncio.CancelledError}
    assert any(r is None for r in results)
    assert pool.statistics().available == 4
    assert pool.statistics().waiting == 0


# Growing and shrinking


async def test_what_nobody_uses_is_given_up_down_to_the_minimum():
    pool, discarded = make_pool(capacity=4, minimum=1)
    items = [await pool.acquire() for _ in range(4)]
    for item in items:
        pool.release(item)
    pool.trim()
    assert not discarded, "they were in use since the last time"
    busy = [await pool.acquire() for _ in range(2)]
    for item in busy:
        pool.release(item)
    pool.trim()
    assert len(discarded) == 2, "two were enough"
    assert set(discarded).isdisjoint(busy), "the coldest go"
    pool.trim()
    assert len(discarded) == 3
    pool.trim()
    assert len(discarded) == 3
    again = [await pool.acquire() for _ in range(4)]
    assert len(set(again)) == 4
    assert pool.statistics().retired == 0, "none was given up for a fault"


async def test_items_in_use_count_for_the_minimum():
    pool, discarded = make_pool(capacity=4, minimum=2)
    one, two, three = [await pool.acquire() for _ in range(3)]
    pool.release(three)
    pool.trim()
    pool.trim()
    assert discarded == [three]
    pool.release(two)
    pool.trim()
    pool.trim()
    assert discarded == [three]
    pool.release(one)


async def test_a_pool_of_one_size_gives_nothing_up():
    pool, discarded = make_pool(capacity=2)
    pool.release(await pool.acquire())
    for _ in range(3):
        pool.trim()
    assert not discarded
    assert not pool.is_elastic
    assert not pool.refuse(await pool.acquire())


async def test_without_memory_for_another_one_those_in_use_are_waited_for():
    pool, discarded = make_pool(capacity=4, minimum=1)
    one = await pool.acquire()
    assert not pool.refuse(one), "nobody else has one"
    two, three = await pool.acquire(), await pool.acquire()
    assert pool.refuse(three)
    assert discarded == [three]
    waiting = asyncio.create_task(pool.acquire())
    await until_waiting(pool, 1)
    pool.release(two)
    assert await waiting is two
    assert pool.acquire_nowait() is None
    pool.trim()
    assert pool.acquire_nowait() is not None, "tried again"
    pool.release(one)


async def test_waiters_are_served_when_more_may_be_tried():
    pool, _ = make_pool(capacity=3, minimum=1)
    await pool.acquire()
    assert pool.refuse(await pool.acquire())
    waiting = asyncio.create_task(pool.acquire())
    await until_waiting(pool, 1)
    pool.trim()
    await waiting


@pytest.mark.parametrize("minimum", [0, 3])
def test_a_minimum_that_cannot_be(minimum):
    with pytest.raises(ValueError, match="from at least 1 to at most 2"):
        make_pool(minimum=minimum)


class PoolMachine(RuleBasedStateMachine):
    """Random users of a pool, step by step, against a simple picture of it."""

    items = Bundle("items")
    waiters = Bundle("waiters")
    loop: asyncio.AbstractEventLoop
    """One for all machines: one that is made is not always torn down."""

    def __init__(self):
        super().__init__()
        self.capacity, self.minimum = 3, 1
        self.most = self.capacity  # less, after there was no memory for one
        self.trimmed = 0
        self.discarded = []
        self.pool = Pool(
            Item, self._discard, capacity=self.capacity, minimum=self.minimum, max_waiting=3
        )
        self.held = []
        self.in_flight = []
        self.parked = []
        self.quarantined = []
        self.line = []  # tasks that wait, in order
        self.is_closed = False

    def _discard(self, item):
        assert item.state is SlotState.RETIRED
        assert item not in self.discarded
        self.discarded.append(item)

    def settle(self):
        """Run all that can run, then see who was served: always the first in line."""

        async def turn():
            for _ in range(4):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turn())
        served = [task for task in self.line if task.done()]
        assert served == self.line[: len(served)], "somebody was overtaken"
        for task in served:
            self.line.remove(task)
            if task.cancelled() or task.exception() is not None:
                assert self.is_closed
                continue
            item = task.result()
            assert item not in self.held
            assert item not in self.parked + self.quarantined
            self.held.append(item)

    @rule()
    def acquire(self):
        task = self.loop.create_task(self.pool.acquire())
        expected_to_fail = len(self.line) >= 3
        self.line.append(task)
        self.loop.run_until_complete(asyncio.sleep(0))
        if self.is_closed or (task.done() and not task.cancelled() and task.exception()):
            assert isinstance(task.exception(), (PoolClosed, PoolExhausted))
            assert self.is_closed or expected_to_fail
            self.line.remove(task)
        self.settle()

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def cancel_a_waiter(self, data):
        task = data.draw(st.sampled_from(self.line))
        self.line.remove(task)
        task.cancel()
        self.settle()
        assert task.cancelled()

    @precondition(lambda self: self.line and self.held)
    @rule(data=st.data())
    def release_while_the_first_waiter_is_cancelled(self, data):
        """The item is delivered in the same turn in which the waiter's task is cancelled."""
        item = data.draw(st.sampled_from(self.held))
        task = self.line.pop(0)
        if data.draw(st.booleans()):
            task.cancel()
            self.leave(item, self.pool.release)
        else:
            self.leave(item, self.pool.release)
            task.cancel()
        self.settle()
        assert task.cancelled()

    def leave(self, item, move):
        self.held.remove(item)
        if item in self.in_flight:
            self.in_flight.remove(item)
        move(item)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), move=st.sampled_from(["release", "park", "quarantine", "retire"]))
    def let_go(self, data, move):
        item = data.draw(st.sampled_from(self.held))
        self.leave(item, getattr(self.pool, move))
        if move == "park" and not self.is_closed:
            self.parked.append(item)
        if move == "quarantine":
            self.quarantined.append(item)
        self.settle()

    @precondition(lambda self: len(self.held) > len(self.in_flight))
    @rule(data=st.data())
    def refuse(self, data):
        item = data.draw(st.sampled_from([i for i in self.held if i not in self.in_flight]))
        others = len(self.held) - 1 + len(self.quarantined)
        if self.pool.refuse(item):
            assert others >= self.minimum
            self.most = others
            self.trimmed += 1
            self.held.remove(item)
        else:
            assert others < self.minimum
        self.settle()

    @rule()
    def trim(self):
        before = len(self.discarded)
        self.pool.trim()
        self.trimmed += len(self.discarded) - before
        self.most = self.capacity
        self.settle()

    @precondition(lambda self: len(self.held) > len(self.in_flight))
    @rule(data=st.data())
    def depart(self, data):
        item = data.draw(st.sampled_from([i for i in self.held if i not in self.in_flight]))
        self.pool.depart(item)
        self.in_flight.append(item)

    @precondition(lambda self: self.in_flight)
    @rule()
    def arrive(self):
        self.pool.arrive(self.in_flight.pop())

    @precondition(lambda self: self.parked)
    @rule()
    def arrays_die(self):
        self.pool.unpark(self.parked.pop())
        self.settle()

    @precondition(lambda self: self.quarantined)
    @rule(is_quiet=st.booleans())
    def fence(self, is_quiet):
        item = self.quarantined.pop()
        (self.pool.restore if is_quiet else self.pool.retire)(item)
        self.settle()

    @rule()
    def close(self):
        self.is_closed = True
        self.pool.close()
        self.parked.clear()
        self.settle()
        assert not self.line

    @invariant()
    def figures_are_true(self):
        picture = self.pool.statistics()
        assert picture.in_use == len(self.held)
        assert picture.in_flight == len(self.in_flight)
        assert picture.parked == len(self.parked)
        assert picture.quarantined == len(self.quarantined)
        assert picture.waiting == len(self.line)
        assert picture.retired == len(self.discarded) - self.trimmed
        assert picture.in_use + picture.quarantined + picture.available <= self.most
        assert len(set(self.held)) == len(self.held), "an item was handed out twice"

    @invariant()
    def nobody_waits_for_nothing(self):
        if self.line:
            assert self.pool.statistics().available == 0

    def teardown(self):
        for task in self.line:
            task.cancel()
        self.line.clear()
        for item in list(self.held):
            self.leave(item, self.pool.release)
        for item in list(self.parked):
            self.pool.unpark(item)
        for item in list(self.quarantined):
            self.pool.restore(item)
        self.settle()
        assert self.pool.statistics().available == self.most
        self.pool.close()
        drained = self.loop.create_task(self.pool.drained())
        self.settle()
        assert drained.done()
        assert self.pool.statistics().retired == len(self.discarded) - self.trimmed


class TestPoolMachine(PoolMachine.TestCase):
    settings = settings(
        max_examples=150,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )

    def runTest(self):  # noqa: N802 # as unittest calls it
        with closing(asyncio.new_event_loop()) as PoolMachine.loop:
            super().runTest()
