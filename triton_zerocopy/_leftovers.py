"""`Leftovers`: regions that nobody uses any more, but whose server may.

The server did not answer, or still runs a request with them. It is asked again and again in
the background, and their memory is given back when it proves to have let go.

What holds:

- while there are any, new regions are made only after the server has answered about these: so
  a server that is away does not make them more and more, and memory comes back before new memory
  is wanted;
- a server that was restarted knows none of them, which is proof as well;
- what is left when the client closes stays registered, and is told by its owner file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from ._errors import RegistrationError, ServerUnavailable
from ._regions.base import Region
from ._registration import LAST_WORDS

_SHORTEST: Final = 0.05  # seconds between two times of asking
_LONGEST: Final = 1.0


class Leftovers:
    """The leftovers of one client.

    Args:
        settle: asks the server once about a region, and frees it if the server let go; tells
            whether it did. Raises RegistrationError or ServerUnavailable.
    """

    def __init__(self, settle: Callable[[Region], Awaitable[bool]]) -> None:
        self._settle = settle
        self._regions: list[Region] = []
        self._asking: asyncio.Task[ServerUnavailable | None] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._regions)

    def add(self, region: Region) -> None:
        """Take a region over."""
        if region in self._regions:
            return
        self._regions.append(region)
        if not self._is_closed and (self._worker is None or self._worker.done()):
            self._worker = asyncio.get_running_loop().create_task(self._work())

    async def ask(self) -> None:
        """Ask the server about all of them, once; whoever comes meanwhile waits along.

        Raises:
            ServerUnavailable: it does not answer.

        Cancellation: the asking goes on.
        """
        if not self._regions:
            return
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask_all())
        problem = await asyncio.shield(self._asking)
        if problem is not None:
            raise ServerUnavailable(str(problem)) from problem

    async def _ask_all(self) -> ServerUnavailable | None:
        for region in tuple(self._regions):
            try:
                if await self._settle(region):
                    self._regions.remove(region)
            except RegistrationError:
                continue  # it answered, though it would not say
            except ServerUnavailable as error:
                return error
        return None

    async def _work(self) -> None:
        pause = _SHORTEST
        while self._regions:
            await asyncio.sleep(pause)
            before = len(self._regions)
            try:
                await self.ask()
            except ServerUnavailable:
                pass
            pause = _SHORTEST if len(self._regions) < before else min(2 * pause, _LONGEST)

    async def aclose(self, timeout: float | None) -> Sequence[Region]:
        """Ask for the last time, and return what is left.

        Args:
            timeout: seconds to wait for requests that still use some, and for a server that
                does not answer; None for ever. One that cannot be reached is not waited for,
                but that a link broke just now says little.
        """
        self._is_closed = True
        await _end(self._worker)
        loop = asyncio.get_running_loop()
        enough = loop.time() + LAST_WORDS
        try:
            async with asyncio.timeout(timeout):
                while self._regions:
                    try:
                        await self.ask()
                    except ServerUnavailable:
                        if loop.time() >= enough:
                            raise
                    if self._regions:
                        await asyncio.sleep(_SHORTEST)
        except (TimeoutError, ServerUnavailable):
            pass
        await _end(self._asking)
        left, self._regions = self._regions, []
        return left


async def _end(task: asyncio.Task[object] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.wait([task])
