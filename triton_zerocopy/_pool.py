"""`Pool`: who may use which slot, and who waits. No I/O, no clock, no memory in here.

Every decision is synchronous; whoever calls does the I/O afterwards. Waiters are served
in order, and nobody who arrives later overtakes them. An item handed to a waiter whose
task was cancelled in the meantime is passed on, never lost.

At most ``capacity`` items are in use (leased, in flight or quarantined) at a time. Items
are made when they are first needed. A parked item (arrays of an ended lease are still
alive) does not count: a spare is made in its place if nothing else is free, and one item
too many is discarded when it comes back. An elastic pool (``minimum`` below ``capacity``)
gives up what was free all the time between two calls of ``trim``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from ._errors import PoolClosed, PoolError, PoolExhausted
from ._slot_states import PoolItem, PoolStatistics, SlotState

_USED: Final = (SlotState.LEASED, SlotState.IN_FLIGHT)
_IN_USE: Final = (*_USED, SlotState.QUARANTINED)

T = TypeVar("T", bound=PoolItem)


class Pool(Generic[T]):
    """A bounded set of items, handed out one user at a time.

    Args:
        make: makes a new item; synchronous and cheap.
        discard: is told of each item that left the pool for good.
        capacity: how many items may be in use at a time.
        minimum: how many are kept when nobody uses them, by default all that were made.
        max_waiting: how many callers may wait; None for any number.
        name: what messages call it.
    """

    def __init__(
        self,
        make: Callable[[], T],
        discard: Callable[[T], None],
        *,
        capacity: int,
        minimum: int | None = None,
        max_waiting: int | None = None,
        name: str = "pool",
    ) -> None:
        if capacity < 1:
            raise ValueError(f"slots must be at least 1, got {capacity}")
        if minimum is not None and not 1 <= minimum <= capacity:
            raise ValueError(f"slots go from at least 1 to at most {capacity}, got {minimum}")
        if max_waiting is not None and max_waiting < 0:
            raise ValueError(f"max_waiting must not be negative, got {max_waiting}")
        self._make = make
        self._discard = discard
        self._capacity = capacity
        self._minimum = capacity if minimum is None else minimum
        self._ceiling = capacity  # less, while there is no memory for more
        self._spare = 0  # free all the time since the last trim
        self._max_waiting = max_waiting
        self._name = name
        self._free: list[T] = []  # last in, first out: the warmest memory first
        self._parked: set[T] = set()
        self._quarantined: set[T] = set()
        self._waiters: deque[asyncio.Future[T]] = deque()
        self._in_use = 0
        self._in_flight = 0
        self._retired = 0
        self._is_closed = False
        self._drained: asyncio.Future[None] | None = None

    # Taking

    def acquire_nowait(self) -> T | None:
        """Take an item if nobody waits and one is at hand, else return None.

        Raises:
            PoolClosed: the pool was closed.
        """
        if self._is_closed:
            raise PoolClosed(f"{self._name} is closed")
        if self._waiters or self._in_use >= self._ceiling:
            return None
        return self._take()

    async def acquire(self, *, may_queue: bool = False) -> T:
        """Take an item, waiting in line for it.

        Args:
            may_queue: wait whatever ``max_waiting`` says, as the parts of one request do.

        Raises:
            PoolClosed: the pool was or is closed.
            PoolExhausted: ``max_waiting`` callers wait already.

        Cancellation: safe. An item that was handed over already is passed on.
        """
        item = self.acquire_nowait()
        if item is not None:
            return item
        limit = None if may_queue else self._max_waiting
        if limit is not None and len(self._waiters) >= limit:
            raise PoolExhausted(
                f"{self._name}: all {self._capacity} slots are in use and {len(self._waiters)} "
                f"callers wait (max_waiting={self._max_waiting}); try again later or raise slots"
            )
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.cancelled():
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
            elif waiter.exception() is None:
                self.release(waiter.result())  # it was mine already: pass it on
            raise

    # Moves of an item by its user

    def depart(self, item: T) -> None:
        """LEASED to IN_FLIGHT: its request went to the server."""
        if item.state is not SlotState.LEASED:
            raise self._illegal(item, SlotState.IN_FLIGHT)
        item.state = SlotState.IN_FLIGHT
        self._in_flight += 1

    def arrive(self, item: T) -> bool:
        """IN_FLIGHT to LEASED: the server answered. Return True if it has nothing else to do."""
        if item.state is not SlotState.IN_FLIGHT:
            raise self._illegal(item, SlotState.LEASED)
        item.state = SlotState.LEASED
        self._in_flight -= 1
        return not self._in_flight

    def release(self, item: T) -> None:
        """Give an item back; the next waiter has it at once."""
        self._leave(item, SlotState.FREE, _USED)
        if self._waiters or self._is_closed:
            self._admit(item)
        else:
            self._free.append(item)

    def park(self, item: T) -> None:
        """Its lease is over, but arrays of it are still alive."""
        self._leave(item, SlotState.PARKED, _USED)
        self._parked.add(item)
        if self._is_closed:
            self.retire(item)
        self._serve()

    def unpark(self, item: T) -> None:
        """The last array of a parked item died."""
        if item.state is not SlotState.PARKED:
            return  # closing the pool retired it first
        self._parked.remove(item)
        item.state = SlotState.FREE
        self._admit(item)

    def quarantine(self, item: T) -> None:
        """Its call ended without proof that the server let go. It stays in use."""
        self._leave(item, SlotState.QUARANTINED, _USED)
        self._in_use += 1
        self._quarantined.add(item)

    def restore(self, item: T) -> None:
        """A quarantined item was proved quiet."""
        if item.state is not SlotState.QUARANTINED:
            return  # closing the pool retired it first
        self._quarantined.remove(item)
        self._leave(item, SlotState.FREE, (SlotState.QUARANTINED,))
        self._admit(item)

    def retire(self, item: T) -> None:
        """Give an item up for good; a new one may be made in its place."""
        if item.state is SlotState.RETIRED:
            return
        self._parked.discard(item)
        self._quarantined.discard(item)
        if item in self._free:
            self._free.remove(item)
        if item.state in _IN_USE:
            self._leave(item, SlotState.RETIRED, _IN_USE)
        item.state = SlotState.RETIRED
        self._retired += 1
        self._discard(item)
        self._serve()

    # Growing and shrinking

    @property
    def is_elastic(self) -> bool:
        """True if it gives up items that nobody uses for long."""
        return self._minimum < self._capacity

    def refuse(self, item: T) -> bool:
        """Give up a leased item that there is no memory for, if others are there to wait for.

        Until the next ``trim`` no more than those are in use.

        Returns:
            False if this item cannot be done without: the pool has no more than it must have.
        """
        others = self._in_use - 1
        if others < self._minimum or not self.is_elastic:
            return False
        self._leave(item, SlotState.RETIRED, (SlotState.LEASED,))
        self._ceiling = others
        self._discard(item)
        return True

    def trim(self) -> None:
        """Give up what nobody used since the last time, down to the minimum."""
        self._ceiling = self._capacity
        surplus = min(self._spare, self._in_use + len(self._free) - self._minimum)
        coldest, self._free = self._free[: max(0, surplus)], self._free[max(0, surplus) :]
        for item in coldest:
            item.state = SlotState.RETIRED
            self._discard(item)
        self._spare = len(self._free)
        self._serve()

    # Closing

    def close(self) -> None:
        """Refuse new users, fail the waiters, give up what nobody uses. Idempotent."""
        self._is_closed = True
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(
                    PoolClosed(f"{self._name} was closed while waiting for a slot")
                )
        for item in [*self._free, *self._parked]:
            self.retire(item)

    async def drained(self) -> None:
        """Wait until no item is leased or in flight. Cancellation: safe."""
        while self._in_use > len(self._quarantined):
            if self._drained is None or self._drained.done():
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    # Looking

    def statistics(self) -> PoolStatistics:
        """Return a picture of the pool as it is now."""
        return PoolStatistics(
            capacity=self._capacity,
            available=max(0, self._ceiling - self._in_use),
            in_use=self._in_use - len(self._quarantined),
            in_flight=self._in_flight,
            parked=len(self._parked),
            quarantined=len(self._quarantined),
            retired=self._retired,
            waiting=len(self._waiters),
        )

    def __repr__(self) -> str:
        picture = self.statistics()
        return (
            f"<Pool {self._name}: {picture.in_use}/{picture.capacity} in use, "
            f"{picture.waiting} waiting, {picture.parked} parked, "
            f"{picture.quarantined} quarantined>"
        )

    # The rules

    def _illegal(self, item: T, state: SlotState) -> PoolError:
        return PoolError(f"{self._name}: a slot cannot go from {item.state.value} to {state.value}")

    def _leave(self, item: T, state: SlotState, origins: tuple[SlotState, ...]) -> None:
        """An item in use is not in use any more."""
        if item.state not in origins:
            raise self._illegal(item, state)
        self._in_use -= 1
        self._in_flight -= item.state is SlotState.IN_FLIGHT
        item.state = state
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)  # drained() looks again

    def _take(self) -> T:
        free = self._free
        item = free.pop() if free else self._make()
        if len(free) < self._spare:  # noqa: PLR1730 # many times cheaper than min()
            self._spare = len(free)
        item.state = SlotState.LEASED
        self._in_use += 1
        return item

    def _admit(self, item: T) -> None:
        """A FREE item goes to the next waiter, to the free list, or is one too many."""
        self._free.append(item)
        self._serve()
        if item.state is SlotState.FREE and (
            self._is_closed or self._in_use + len(self._free) > self._capacity
        ):
            self.retire(item)

    def _serve(self) -> None:
        while self._waiters and not self._is_closed:
            if self._waiters[0].done():
                self._waiters.popleft()  # cancelled; its own handler finds it gone
                continue
            if self._in_use >= self._ceiling:
                return
            self._waiters.popleft().set_result(self._take())
