"""`Ownership`: the owner of a client's regions, made when the first of them is."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from ._outliving import outlive
from ._owners import Owner, Unrecorded
from ._regions.system import explain
from ._settings import Settings
from ._urls import server_key

logger = logging.getLogger("triton_zerocopy")

Result = TypeVar("Result")


class Shop(Protocol):
    """What this needs from its client."""

    settings: Settings

    def submit(self, work: Callable[[], Result]) -> asyncio.Future[Result]: ...
    def spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]: ...


class Ownership:
    """Who owns the regions of one client, if anybody does already.

    Args:
        shop: the client's shared part.
        begun: called when there is an owner, before its first region.

    Attributes:
        owner: None before there is one.
    """

    def __init__(self, shop: Shop, begun: Callable[[], object]) -> None:
        self.owner: Owner | None = None
        self._shop = shop
        self._begun = begun
        self._beginning: asyncio.Task[Owner] | None = None

    async def get(self, *, needs_files: bool = False) -> Owner:
        """Return the owner; its file is made at the first time.

        Args:
            needs_files: True if nothing can be shared where that file cannot be made. Memory
                of a GPU can.

        Raises:
            CapacityError, RegionError: the file could not be made.

        Cancellation: ends the waiting.
        """
        is_lacking = needs_files and isinstance(self.owner, Unrecorded)
        if self.owner is None or is_lacking:
            if self._beginning is None:
                self._beginning = self._shop.spawn(self._begin(needs_files))
            return await outlive(self._beginning)
        return self.owner

    async def _begin(self, needs_files: bool) -> Owner:
        settings = self._shop.settings
        owner: Owner
        try:
            owner = await self._shop.submit(
                lambda: Owner(
                    server_key(settings.target), mode=settings.shm_mode, gid=settings.shm_gid
                )
            )
        except OSError as error:
            problem = explain(error, os.sysconf("SC_PAGE_SIZE"))
            if needs_files:
                raise problem from error
            logger.warning("if this process is killed, its regions stay registered: %s", problem)
            owner = Unrecorded()
        finally:
            self._beginning = None
        self.owner = owner
        self._begun()
        return owner

    def forget(self, name: str) -> None:
        """The server does not know a name any more."""
        if self.owner is not None:
            self.owner.names.discard(name)

    async def release(self) -> None:
        """End it; the file goes if the server knows none of the regions."""
        if self.owner is not None:
            await self._shop.submit(self.owner.release)
