"""`Making`: attempts to make regions, none of which fails because of another one.

Before an attempt fails for want of memory it has taken what there was, for a moment. Another one,
at that moment, finds nothing, though it would have fitted. So who fails beside others tries again,
alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ._errors import CapacityError

Result = TypeVar("Result")


class Making:
    """The attempts of one client.

    Args:
        ends: one for each region that is being given back; its memory will be there in a moment.
    """

    def __init__(self, ends: set[asyncio.Future[None]]) -> None:
        self._ends = ends
        self._under_way: set[asyncio.Future[None]] = set()
        self._begun = 0
        self._one_by_one = asyncio.Lock()

    async def make(self, attempt: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Return what an attempt returns, which is made again while there is hope.

        Raises:
            CapacityError: there is not enough memory, with no other attempt and nothing to come.

        Cancellation: as that of the attempt.
        """
        if not self._one_by_one.locked():
            self._begun += 1
            was_first, begun = not self._under_way, self._begun
            try:
                return await self._beside_others(attempt)
            except CapacityError:
                if was_first and begun == self._begun and not self._ends:
                    raise
        async with self._one_by_one:
            while self._under_way:
                await asyncio.wait(self._under_way)
            while True:
                try:
                    return await attempt()
                except CapacityError:
                    if not self._ends:
                        raise
                await asyncio.wait(self._ends, return_when=asyncio.FIRST_COMPLETED)

    async def _beside_others(self, attempt: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._under_way.add(end)
        try:
            return await attempt()
        finally:
            self._under_way.discard(end)
            end.set_result(None)
