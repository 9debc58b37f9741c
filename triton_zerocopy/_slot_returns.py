"""`SlotReturns`: where a slot goes that its last holder let go of.

=========================================  ================================================
the slot                                   goes
=========================================  ================================================
has a call that ended without an answer    into quarantine, until the server proved that it
                                           let go of the region; then back, without one
was lent, and an array of it is alive      aside (parked), until the last one died and what
                                           was queued on it is done
was lent, and nothing is left of that      back
had work that a GPU cannot be waited for   nowhere: it is given up
=========================================  ================================================
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from ._cuda.device import Device
from ._errors import RegistrationError, ServerUnavailable
from ._pool import Pool
from ._runtime import Runtime
from ._slot_memory import SlotMemory
from ._slots import Slot

logger = logging.getLogger("triton_zerocopy")


class SlotReturns:
    """Sends the slots of one model on.

    Args:
        runtime: the client's shared part.
        pool: where they go.
        memory: takes regions away.
        device: the GPU that they are on; None for host memory.
        unhold: called when a slot that this held meanwhile is to be decided again.
    """

    def __init__(
        self,
        runtime: Runtime,
        pool: Pool[Slot],
        memory: SlotMemory,
        device: Device | None,
        unhold: Callable[[Slot], None],
    ) -> None:
        self._runtime = runtime
        self._pool = pool
        self._memory = memory
        self._device = device
        self._unhold = unhold

    def decide(self, slot: Slot) -> None:
        """Send a slot on that was lent, or whose call ended without an answer."""
        if not slot.is_settled:
            self._settle(slot)
            return
        if slot.region is None:
            slot.is_doubtful = False  # nothing of it is shared
        if slot.is_doubtful:
            self._pool.quarantine(slot)
            self._runtime.spawn(self._fence(slot))
        elif slot.when_arrays_die(lambda: self._arrays_died(slot)):
            self._pool.park(slot)
        else:
            slot.forget_lease()  # settled, and nobody has an array
            self._pool.release(slot)

    def _arrays_died(self, slot: Slot) -> None:
        # In any thread, maybe in the middle of anything: only leave a message.
        device, streams = self._device, slot.lent_streams
        if device is not None and streams:
            # What other libraries queued on them may still be going to read them.
            is_quiet = partial(self._is_quiet, slot)
            device.post(lambda: device.streams.when_settled(streams, is_quiet))
        else:
            self._is_quiet(slot, None)

    def _is_quiet(self, slot: Slot, error: BaseException | None) -> None:
        move = self._unpark if error is None else self._pool.retire
        try:
            self._runtime.loop.call_soon_threadsafe(move, slot)
        except RuntimeError:
            pass  # the loop is closed, and the client with it

    def _unpark(self, slot: Slot) -> None:
        slot.forget_lease()
        self._pool.unpark(slot)

    def _settle(self, slot: Slot) -> None:
        """Wait for what other libraries queued on arrays of the slot; then decide again."""
        slot.is_settled = True
        if self._device is None or not slot.lent_streams:
            slot.holds += 1
            self._unhold(slot)
            return

        def settled(future: asyncio.Future[None]) -> None:
            # A GPU that cannot even be waited for proves nothing.
            slot.is_doubtful |= future.cancelled() or future.exception() is not None
            self._unhold(slot)

        slot.holds += 1
        self._device.settle(slot.lent_streams).add_done_callback(settled)

    async def _fence(self, slot: Slot) -> None:
        try:
            await self._memory.drop(slot)
        except ServerUnavailable as error:
            # The slot gets another region once the server answers.
            logger.warning(
                "a call of %s ended without an answer; its memory is kept until the server "
                "answers: %s",
                self._pool,
                error,
            )
        except RegistrationError as error:
            logger.warning("a slot of %s is given up: %s", self._pool, error)
            self._pool.retire(slot)
            return
        slot.is_doubtful = False
        self._pool.restore(slot)
