"""`SlotMemory`: the regions that slots get, and give back.

Who calls this holds the slot: nobody else uses it meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

from ._cuda.device import Device
from ._errors import CapacityError, RegistrationError, ServerUnavailable
from ._layout import PAGE, align
from ._region_keeper import RegionKeeper
from ._regions.base import Region
from ._slots import Slot


class SlotMemory:
    """Gives regions to the slots of one model.

    Args:
        regions: makes them and gives them back.
        device: the GPU that they are on; None for host memory.
        rests: True for ensembles, whose steps may touch memory after an answer.
    """

    def __init__(self, regions: RegionKeeper, device: Device | None, *, rests: bool) -> None:
        self._regions = regions
        self._device = device
        self._rests = rests
        self._largest = 0

    async def fit(self, slot: Slot, byte_size: int) -> None:
        """Give a slot a region of at least ``byte_size`` bytes."""
        # Twice as large as before: a slot that grows with its requests does so rarely.
        wanted = align(max(byte_size, 2 * slot.byte_size, self._largest), PAGE)
        enough = align(byte_size, PAGE)
        await self.drop(slot)
        try:
            region = await self._new_region(wanted)
        except CapacityError:
            if wanted == enough:
                raise
            region = await self._new_region(enough)
        slot.attach(region)
        self._largest = max(self._largest, byte_size)

    async def _new_region(self, byte_size: int) -> Region:
        return await self._regions.new_region(byte_size, self._device, rests=self._rests)

    async def replace(self, slot: Slot) -> None:
        """Take the region away from a slot whose call ended without an answer."""
        try:
            await self.drop(slot)
        except (RegistrationError, ServerUnavailable):
            pass  # it is kept until there is proof; the slot gets another one
        slot.is_doubtful = False

    async def renew(self, slot: Slot, placed: Sequence[Region]) -> None:
        """Register a slot's region, and the caller's, under new names."""
        regions = list({id(each): each for each in (slot.region, *placed) if each}.values())
        try:
            await self._regions.renew(regions)
        finally:
            slot.forget_prepared()

    async def drop(self, slot: Slot) -> None:
        """Take the region away from a slot and have the server forget it."""
        region, rest_until = slot.region, slot.rest_until
        slot.attach(None)
        if region is None:
            return
        if rest_until:
            self._regions.keep(region, until=rest_until)
        else:
            await self._regions.dispose(region)
