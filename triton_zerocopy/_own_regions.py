"""`OwnRegions`: the regions that callers asked a client for, and close themselves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from typing import Any

from ._regions.base import Region
from ._runtime import Runtime

logger = logging.getLogger("triton_zerocopy")


class OwnRegions:
    """Those of one client.

    Args:
        runtime: the client's shared part.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._open: set[Region] = set()

    def __len__(self) -> int:
        return len(self._open)

    async def hand_out(self, making: Coroutine[Any, Any, Region]) -> Region:
        """Return a region that is being made; if nobody waits any more, it is closed again."""

        async def make() -> Region:
            region = await making
            self._open.add(region)
            region.when_closed(self._open.discard)
            return region

        task = self._runtime.spawn(make())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._give_back)
            raise

    def _give_back(self, task: asyncio.Task[Region]) -> None:
        if not task.cancelled() and task.exception() is None:
            self._runtime.spawn(task.result().aclose())

    def ends(self, limit: float | None) -> list[Awaitable[None]]:
        """Return what closes them, each within so many seconds."""
        return [self._close(region, limit) for region in self._open]

    async def _close(self, region: Region, limit: float | None) -> None:
        try:
            async with asyncio.timeout(limit):
                await region.aclose()
        except TimeoutError:
            logger.warning("%r was closed while a call still used it", region)
            self._runtime.regions.abandon(region)
