"""`RegionKeeper`: all regions of a client, from being made until the server let go of them.

It knows at each time which names the server may know. Those keep the client's owner file:
what is left when the client ends is reclaimed by the next one.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from ._cuda.device import Device
from ._endings import public_error
from ._errors import ForkedClientError, RegistrationError, ServerUnavailable
from ._leftovers import Leftovers
from ._making import Making
from ._ownership import Ownership, Shop
from ._regions.base import Region, RegionHost
from ._regions.budget import Budget
from ._regions.cuda import make_region
from ._regions.names import new_name
from ._regions.system import SystemRegion
from ._registration import (
    LAST_WORDS,
    is_known,
    is_let_go,
    may_have_arrived,
    register,
    unregister,
)
from ._transports.base import ServerError, Transport

logger = logging.getLogger("triton_zerocopy")

FENCE_TIMEOUT: Final = 30.0  # seconds to wait until a server lets go of a region


class Workshop(Shop, Protocol):
    """What a keeper needs from its client."""

    budget: Budget

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...
    @property
    def transport(self) -> Transport: ...
    def check_usable(self) -> None: ...
    async def run_copy(self, copy: Callable[[], Any], byte_size: int) -> Any: ...


class RegionKeeper:
    """Makes regions, makes them known to the server, and gives them back.

    Args:
        shop: the client's shared part.
        first_used: called when the first region is about to be made.

    Attributes:
        ownership: who owns the regions.
    """

    def __init__(self, shop: Workshop, first_used: Callable[[], object]) -> None:
        self._shop = shop
        self._pid = os.getpid()
        self.ownership = Ownership(shop, first_used)
        self._kept: list[Region] = []
        self._leftovers = Leftovers(self._settle)
        # One for each region that is being given back: its memory will be there in a moment.
        self._ends: set[asyncio.Future[None]] = set()
        self._making = Making(self._ends)
        self._kept_until = 0.0

    # What a region asks of its client

    def check_usable(self) -> None:
        """Raise if the client cannot be used here."""
        self._shop.check_usable()

    async def run_copy(self, copy: Callable[[], Any], byte_size: int) -> Any:
        """Run a copy, in a thread if it is large."""
        return await self._shop.run_copy(copy, byte_size)

    # Making

    async def new_region(
        self,
        byte_size: int,
        device: Device | None,
        *,
        is_public: bool = False,
        rests: bool = False,
        place: str = "",
    ) -> Region:
        """Make a region and register it. After an error neither is left.

        Args:
            byte_size: bytes in it.
            device: the GPU it is on; None for host memory.
            is_public: True if it is for callers to use by itself.
            rests: True if it must rest after an error before it is unregistered.
            place: file and line of the code that wanted it, for warnings.
        """
        settings = self._shop.settings
        await self._leftovers.ask()
        owner = await self.ownership.get(needs_files=device is None)
        if rests:
            await self._shop.submit(owner.note_rest)
        host = self if is_public else None
        place = place or settings.place
        region = await self._making.make(
            lambda: self._made(byte_size, device, owner.id, host, place)
        )
        return await self.registered(region)

    async def _made(
        self,
        byte_size: int,
        device: Device | None,
        owner_id: str,
        host: RegionHost | None,
        place: str,
    ) -> Region:
        settings, budget = self._shop.settings, self._shop.budget
        if device is None:
            return await self._shop.submit(
                lambda: SystemRegion(
                    byte_size,
                    owner_id=owner_id,
                    budget=budget,
                    mode=settings.shm_mode,
                    gid=settings.shm_gid,
                    host=host,
                    place=place,
                )
            )
        return await make_region(
            device,
            byte_size,
            owner_id=owner_id,
            budget=budget,
            server_device_id=settings.server_device_id(device.id, device.facts.uuid),
            host=host,
            place=place,
        )

    async def registered(self, region: Region) -> Region:
        """Make a new region known to the server, or give it back."""
        try:
            await self._register(region)
        except asyncio.CancelledError:
            await self._take_back(region)
            raise
        except BaseException as error:
            if may_have_arrived(error):
                self._leftovers.add(region)
            else:
                await self._shop.submit(region.free)
            raise
        return region

    async def _take_back(self, region: Region) -> None:
        """The client, or its event loop, ends while a region is registered."""
        is_over = False
        try:
            async with asyncio.timeout(LAST_WORDS):
                is_over = await self._settle(region)
        except (TimeoutError, RegistrationError, ServerUnavailable):
            pass
        finally:
            if not is_over:
                self._leftovers.add(region)

    async def make_known(self, region: Region) -> None:
        """Register a region again, under a new name: a name is never used twice."""
        owner = await self.ownership.get()
        owner.names.discard(region.name)
        region.name = new_name(owner.id)
        try:
            await self._register(region)
        except RegistrationError:
            # The name may be another's: no call may refer to that one's memory.
            region.name = new_name(owner.id)
            raise

    async def renew(self, regions: Iterable[Region]) -> None:
        """Register anew those of the regions that the server does not know (any more).

        Raises:
            RegistrationError, ServerUnavailable, InferenceError: what the names say.
        """
        for region in regions:
            async with region.renewing:
                try:
                    knows = await is_known(self._shop.transport, region)
                except ServerError as error:
                    raise public_error(error) from error
                if not knows:
                    await self.make_known(region)

    async def _register(self, region: Region) -> None:
        self._check_process()
        owner = await self.ownership.get()
        owner.names.add(region.name)
        try:
            await register(self._shop.transport, region)
        except (RegistrationError, ServerUnavailable) as error:
            if not may_have_arrived(error):
                owner.names.discard(region.name)
            raise

    # Giving back

    async def forget(self, region: Region) -> None:
        """Unregister a region and wait until the server let go of it."""
        self._check_process()
        await unregister(self._shop.transport, region, timeout=FENCE_TIMEOUT)
        self.ownership.forget(region.name)

    async def dispose(self, region: Region) -> None:
        """Unregister a region, then free it. Without proof that the server let go, it is kept.

        Raises:
            RegistrationError, ServerUnavailable: there is no proof yet; it goes on being
                asked for.
        """
        end: asyncio.Future[None] = self._shop.loop.create_future()
        self._ends.add(end)
        try:
            await self.forget(region)
            await self._free(region)
        except ForkedClientError:
            raise  # it is the parent's
        except BaseException:
            self._leftovers.add(region)
            raise
        finally:
            self._ends.discard(end)
            end.set_result(None)

    async def _settle(self, region: Region) -> bool:
        self._check_process()
        is_over = await is_let_go(self._shop.transport, region)
        if is_over:
            self.ownership.forget(region.name)
            await self._free(region)
        return is_over

    async def _free(self, region: Region) -> None:
        await self._shop.submit(region.free)
        await region.freed()

    def abandon(self, region: Region) -> None:
        """Give up a region that a call still uses, as the client closes.

        Servers from 2.53 on may forget it by themselves when the call ends; earlier ones keep
        it registered, until the owner file tells another client to unregister it.
        """
        region.abandon()
        self._leftovers.add(region)

    def keep(self, region: Region, *, until: float) -> None:
        """Put a region aside until the client closes, and until then at the earliest.

        Args:
            region: it is not used any more.
            until: loop time before which it must not be unregistered.
        """
        self._kept.append(region)
        self._kept_until = max(self._kept_until, until)

    def _check_process(self) -> None:
        # The connection to the server is the parent's, as is all that is registered.
        if os.getpid() != self._pid:
            raise ForkedClientError("a forked child does not touch the regions of its parent")

    # Closing

    async def aclose(self, timeout: float | None) -> None:
        """Give up the kept regions and what is left over, and the ownership.

        Nothing else of the client runs any more.

        Args:
            timeout: seconds to wait for a server that still uses regions.
        """
        if self._kept:
            await asyncio.sleep(max(0.0, self._kept_until - self._shop.loop.time()))
            ends = [self.dispose(region) for region in self._kept]
            await asyncio.gather(*ends, return_exceptions=True)
            self._kept.clear()
        left = await self._leftovers.aclose(timeout)
        if left:
            logger.warning(
                "%d regions stay registered: the server does not answer, or still uses them. The "
                "next client of this server reclaims them",
                len(left),
            )
        for region in left:
            await self._shop.submit(region.give_up)
        await self.ownership.release()
