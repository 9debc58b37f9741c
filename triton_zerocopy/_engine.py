"""One request through one slot: hold it, fit it, write, call, read, let go.

What holds after each end of a call:

============================  ==============================================  ============
the call                      the slot                                        the caller
============================  ==============================================  ============
was answered                  is free (or parked) when its caller lets go     gets it
caller cancelled or timed     stays held until the server answered and no     is released
out, at any point             thread copies any more; then free               at once
ended ambiguously             quarantined until the server proved that it     gets an error
                              let go of the region, then free with a new one
ensemble answered an error    rests, as sibling steps may still read it; its  gets the error
                              region is not unregistered before close
region lost (restart)         registered anew under a new name                is retried once
============================  ==============================================  ============
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from ._copying import Job
from ._cuda.device import Device
from ._endings import Ending, ending_of, hand_over
from ._errors import RegistrationError, ServerUnavailable
from ._outliving import outlive, see_through
from ._pool import Pool
from ._regions.base import Region, begin_calls
from ._registration import ENSEMBLE_REST
from ._runtime import ON_LOOP_BYTES, Runtime
from ._slot_memory import SlotMemory
from ._slot_returns import SlotReturns
from ._slot_states import SlotState
from ._slots import Slot, SlotRange
from ._transports.base import InferReply
from ._waiter import Waiter

logger = logging.getLogger("triton_zerocopy")

Result = TypeVar("Result")

IDLE: Final = 30.0
"""Seconds that slots above the smallest number are kept while nobody uses them, and until more are
tried after memory ran out."""

_IN_USE: Final = (SlotState.LEASED, SlotState.IN_FLIGHT)


class Engine:
    """The slots of one model, and how calls go through them.

    Args:
        runtime: the client's shared part.
        name: what messages call the model.
        device: the GPU that the slots are on; None for host memory.
        slots: how many requests may be under way at a time, and how many of the slots are kept
            when they are not used.
        max_waiting: how many callers may wait for a slot; None for any number.
        is_ensemble: True if errors can be answered before all work is done.
    """

    def __init__(
        self,
        runtime: Runtime,
        name: str,
        *,
        device: Device | None,
        slots: SlotRange,
        max_waiting: int | None,
        is_ensemble: bool,
    ) -> None:
        self.runtime = runtime
        self._loop = runtime.loop
        self._infer = runtime.transport.infer
        self._gathers = runtime.transport.gathers
        self.device = device
        self.is_ensemble = is_ensemble
        self.pool = Pool(
            self._make,
            self._discard,
            capacity=slots.most,
            minimum=slots.fewest,
            max_waiting=max_waiting,
            name=f"model {name!r}",
        )
        self._memory = SlotMemory(runtime.regions, device, rests=is_ensemble)
        self._returns = SlotReturns(runtime, self.pool, self._memory, device, self.unhold)
        self.leases: set[object] = set()
        """Those whose block was entered and not left."""
        self._slots: set[Slot] = set()
        self._trimmer: asyncio.TimerHandle | None = None

    def _make(self) -> Slot:
        slot = Slot()
        slot.answered = partial(self._answered, slot)
        self._slots.add(slot)
        if self._trimmer is None and self.pool.is_elastic:
            self._trimmer = self._loop.call_later(IDLE, self._trim)
        return slot

    def _trim(self) -> None:
        self._trimmer = self._loop.call_later(IDLE, self._trim)
        self.pool.trim()

    def refuse(self, slot: Slot) -> bool:
        """Give up a slot that there is no memory for; tell whether there are others to wait for."""
        if slot.holds != 1 or not self.pool.refuse(slot):
            return False
        slot.holds = 0
        return True

    # Holding

    def acquire_nowait(self) -> Slot | None:
        """Take a slot for a caller, who lets go of it through ``unhold``; None if none is free."""
        slot = self.pool.acquire_nowait()
        if slot is not None:
            slot.holds = 1
        return slot

    async def acquire(self, *, may_queue: bool = False) -> Slot:
        """Take a slot for a caller, waiting for it in line."""
        slot = await self.pool.acquire(may_queue=may_queue)
        slot.holds = 1
        return slot

    def unhold(self, slot: Slot) -> None:
        """One holder less. The last one decides where the slot goes."""
        slot.holds -= 1
        if slot.holds:
            return
        if slot.is_doubtful or slot.lease_root is not None:
            self._returns.decide(slot)
        else:
            self.pool.release(slot)

    async def offload(
        self, slot: Slot, work: Callable[[], Result], byte_size: int, *, must_finish: bool = False
    ) -> Result:
        """Run a copy; large ones in a thread, which holds the slot until it is done.

        Args:
            slot: the memory that is copied from or to.
            work: the copy.
            byte_size: how much it copies.
            must_finish: a cancel waits for the copy, because it writes into the caller's
                own memory.
        """
        if byte_size <= ON_LOOP_BYTES:
            return work()
        return await self.follow(slot, self.runtime.submit(work), must_finish=must_finish)

    async def copy(
        self, slot: Slot, jobs: Sequence[Job], byte_size: int, *, must_finish: bool = False
    ) -> None:
        """Make copies, large ones in threads at the same time; else as ``offload``."""
        if byte_size <= ON_LOOP_BYTES:
            for job in jobs:
                job()
            return
        await self.follow(slot, self.runtime.submit_all(jobs), must_finish=must_finish)

    async def follow(
        self, slot: Slot, future: asyncio.Future[Result], *, must_finish: bool = False
    ) -> Result:
        """Wait for work on a slot's memory, which holds the slot until it is done.

        Args:
            slot: the memory that is copied from or to.
            future: the work, which goes on whatever happens here.
            must_finish: as for ``offload``.
        """
        slot.holds += 1
        future.add_done_callback(lambda _: self.unhold(slot))
        return await (see_through if must_finish else outlive)(future)

    # Memory

    async def fit(self, slot: Slot, byte_size: int) -> None:
        """See to it that a slot has a region of at least ``byte_size`` bytes.

        Cancellation: the change goes on and holds the slot until it is done.
        """
        if byte_size > slot.byte_size:
            await self._change(slot, self._memory.fit(slot, byte_size))

    async def replace(self, slot: Slot) -> None:
        """Take the region away from a slot whose call ended without an answer.

        Cancellation: as for ``fit``.
        """
        await self._change(slot, self._memory.replace(slot))

    async def renew(self, slot: Slot, placed: Sequence[Region]) -> None:
        """The server lost a region: register the same memory under a new name.

        Args:
            slot: its region may be the one, or
            placed: one of the caller's that the request referred to.

        Cancellation: as for ``fit``.
        """
        await self._change(slot, self._memory.renew(slot, placed))

    async def _change(self, slot: Slot, work: Coroutine[Any, Any, None]) -> None:
        slot.holds += 1
        task = self.runtime.spawn(work)
        task.add_done_callback(lambda _: self.unhold(slot))
        await outlive(task)

    # Calling

    def call(
        self, slot: Slot, message: object, placed: Sequence[Region] = ()
    ) -> Waiter[InferReply]:
        """Send a message; the answer is to be awaited.

        Args:
            slot: held until the answer is there, whoever waits for it.
            message: what the transport composed.
            placed: regions of the caller's that the message refers to.

        Awaiting it raises ServerError if the server, or the way to it, answered with an error.
        Cancellation: ends the waiting, not the call.
        """
        if placed:
            begin_calls(placed)
        self.pool.depart(slot)
        slot.holds += 1
        slot.placed = placed
        waiter: Waiter[InferReply] = Waiter(self._loop)
        slot.waiter = waiter
        try:
            self._infer(message, slot.answered)
        except BaseException:
            # Nothing was sent.
            self.pool.arrive(slot)
            slot.holds -= 1
            for region in placed:
                region.end_call(is_ambiguous=False)
            raise
        return waiter

    def _answered(self, slot: Slot, reply: InferReply | None, error: BaseException | None) -> None:
        at_once = self.pool.arrive(slot) or self._gathers
        waiter, placed = slot.waiter, slot.placed
        assert waiter is not None
        slot.waiter, slot.placed = None, ()
        if reply is None:
            self._ended_with(slot, error, placed)
        else:
            for region in placed:
                region.end_call(is_ambiguous=False)
        self.unhold(slot)
        hand_over(waiter, reply, error, at_once=at_once)

    def _ended_with(
        self, slot: Slot, error: BaseException | None, placed: Sequence[Region]
    ) -> None:
        ending = ending_of(error)
        is_ambiguous = ending is Ending.AMBIGUOUS
        slot.is_doubtful |= is_ambiguous
        for region in placed:
            region.end_call(is_ambiguous=is_ambiguous)
        if self.is_ensemble and ending is Ending.ANSWERED and slot.region is not None:
            slot.rest_until = self._loop.time() + ENSEMBLE_REST
            slot.holds += 1
            self._loop.call_at(slot.rest_until, self.unhold, slot)

    # Closing

    async def aclose(self, timeout: float | None) -> None:
        """Refuse new calls, let the running ones end, and give all memory back.

        What is still running after ``timeout`` seconds is left to the server, with a
        warning: its memory is unlinked, and a deferred unregister may still remove it.
        """
        self.pool.close()
        if self._trimmer is not None:
            self._trimmer.cancel()
        try:
            async with asyncio.timeout(timeout):
                await self.pool.drained()
        except TimeoutError:
            picture = self.pool.statistics()
            logger.warning(
                "%s was closed while %d slots were still in use (%d calls unanswered)%s",
                self.pool,
                picture.in_use,
                picture.in_flight,
                f"; not released: {sorted(map(repr, self.leases))}" if self.leases else "",
            )
            for slot in [slot for slot in self._slots if slot.state in _IN_USE]:
                if slot.region is not None:
                    self.runtime.regions.abandon(slot.region)
                    slot.attach(None)

    def _discard(self, slot: Slot) -> None:
        self._slots.discard(slot)
        if slot.region is not None:
            self.runtime.spawn(self._discarded(slot))

    async def _discarded(self, slot: Slot) -> None:
        try:
            await self._memory.drop(slot)
        except (RegistrationError, ServerUnavailable) as error:
            logger.warning("a region of %s could not be unregistered: %s", self.pool, error)
