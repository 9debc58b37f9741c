"""`Reaper`: gives back what clients left behind that were killed, or could not close.

It acts only for owners whose file it can lock, so for dead ones, and holds the lock until it
is done. Then, for each of them:

- The files of its regions are removed, whichever server they were for: nobody needs their names
  any more, and a server that has one mapped keeps the memory.
- If it was a client of this server, its regions are unregistered, until the status of the
  server shows none of them. A request of the dead client may still run and use them.
- Its owner file goes last. So whatever ends a reaper early, the next one knows what is left.

The owner file of another server's client stays for a client of that server. If none comes within
a day, it is removed. Regions without an owner file are never touched.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from ._claims import Claim, claim_dead, unlink_regions
from ._errors import ClientClosed, RegistrationError, ServerUnavailable
from ._outliving import see_through
from ._regions.names import owner_of_region
from ._registration import (
    CALL_TIMEOUT,
    ENSEMBLE_REST,
    explain_refusal,
    is_in_use,
)
from ._server_versions import check_release
from ._settings import Settings
from ._transports.base import ServerError, Transport
from ._urls import server_key

logger = logging.getLogger("triton_zerocopy")

Result = TypeVar("Result")

PATIENCE: Final = 300.0
"""Seconds that the background waits for requests of dead clients to end."""

_POLL: Final = 0.005  # seconds until the second look at regions in use; then twice as long
_MAX_POLL: Final = 0.5

_at_work: set[str] = set()
"""Servers for which a background reaper of this process is at work. Others wait: one is enough,
but it ends with its client."""

os.register_at_fork(after_in_child=_at_work.clear)


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What `Client.reap` gave back, and what it could not.

    Attributes:
        owners: clients of which nothing is left now.
        files: files of regions that were removed from /dev/shm.
        registrations: regions that the server has forgotten.
        in_use: regions that the server still uses for a request of a dead client. They are
            unregistered by the next client that starts, or by calling this again.
    """

    owners: int
    files: int
    registrations: int
    in_use: int


class ReaperHost(Protocol):
    """What a reaper needs from its client."""

    settings: Settings

    @property
    def transport(self) -> Transport: ...
    def submit(self, work: Callable[[], Result]) -> asyncio.Future[Result]: ...


class Reaper:
    """Reaps for one client, at its server."""

    def __init__(self, host: ReaperHost) -> None:
        self._host = host
        self._tasks: set[asyncio.Task[Reclaimed]] = set()
        self._is_closed = False

    def start(self) -> None:
        """Reap in the background."""
        if not self._is_closed:
            self._spawn(self._reap_in_turn()).add_done_callback(_ended)

    async def _reap_in_turn(self) -> Reclaimed:
        server = server_key(self._host.settings.target)
        while server in _at_work:
            await asyncio.sleep(_MAX_POLL)
        _at_work.add(server)
        try:
            return await self._reap(PATIENCE)
        finally:
            _at_work.discard(server)

    async def reap(self, timeout: float | None) -> Reclaimed:
        """Reap now.

        Args:
            timeout: seconds to wait for requests of dead clients; None for ever.

        Raises:
            ServerUnavailable, RegistrationError: the server does not tell what it knows.
            ClientClosed: the client was closed meanwhile.

        Cancellation: ends the reaping. What was not given back by then is left to the next.
        """
        try:
            return await self._spawn(self._reap(timeout))
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if self._is_closed and current is not None and not current.cancelling():
                raise ClientClosed("the client was closed while it reaped") from None
            raise

    def _spawn(self, work: Coroutine[Any, Any, Reclaimed]) -> asyncio.Task[Reclaimed]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def aclose(self) -> None:
        """Stop; what was not given back by now is left to the next reaper."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _reap(self, timeout: float | None) -> Reclaimed:
        loop = asyncio.get_running_loop()
        until = None if timeout is None else loop.time() + timeout
        claims: list[Claim] = []
        try:
            server = server_key(self._host.settings.target)
            await self._in_thread(lambda: claim_dead(claims, server, lambda: self._is_closed))
            if not claims:
                return Reclaimed(0, 0, 0, 0)
            files = await self._in_thread(lambda: unlink_regions(claims))
            ours = [claim for claim in claims if _server_of(claim) == server]
            others = [claim for claim in claims if _server_of(claim) != server]
            owners = await self._in_thread(lambda: _remove_forgotten(others))
            registrations = in_use = 0
            if ours:
                removed, registrations, in_use = await self._unregister(ours, until)
                owners += removed
            return Reclaimed(owners, files, registrations, in_use)
        finally:
            for claim in claims:
                claim.release()

    async def _unregister(
        self, claims: Sequence[Claim], until: float | None
    ) -> tuple[int, int, int]:
        """Have the server forget the regions of dead owners, and remove their files.

        Returns:
            How many owners are done with, how many regions, and how many are still in use.
        """
        loop = asyncio.get_running_loop()
        transport = self._host.transport
        pending = {claim.id: claim for claim in claims}
        try:
            known = left = await self._registered(pending)
            if left:
                check_release(await transport.server_info(timeout=CALL_TIMEOUT))
                if any(_rests(pending[owner]) for _, owner in left.values()):
                    await asyncio.sleep(ENSEMBLE_REST)
            owners, pause = 0, _POLL
            while True:
                for name, (forget, _) in left.items():
                    await _ask(forget, name)
                if left:
                    left = await self._registered(pending)
                busy = {owner for _, owner in left.values()}
                done = [pending.pop(owner) for owner in list(pending) if owner not in busy]
                owners += await self._in_thread(partial(_remove, done))
                if not left or (until is not None and loop.time() >= until):
                    return owners, len(known) - len(left), len(left)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MAX_POLL)
        except ServerError as error:
            raise explain_refusal(error) or RegistrationError(
                f"the server does not tell which regions it knows: {error.message}"
            ) from error

    async def _registered(
        self, owners: dict[str, Claim]
    ) -> dict[str, tuple[Callable[..., Awaitable[None]], str]]:
        """Return the regions of some owners: name → how to unregister it, and whose it is."""
        transport = self._host.transport
        found: dict[str, tuple[Callable[..., Awaitable[None]], str]] = {}
        for names, forget in (
            (transport.list_system, transport.unregister_system),
            (transport.list_cuda, transport.unregister_cuda),
        ):
            try:
                listed = await names(timeout=CALL_TIMEOUT)
            except ServerError as error:
                if error.code == "UNIMPLEMENTED":
                    continue  # it has no such memory, or does not share it
                raise
            for name in listed:
                owner = owner_of_region(name)
                if owner in owners:
                    found[name] = (forget, owner)
        return found

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        """Run work off the loop; a cancel waits for it, as it opens and locks files."""
        return await see_through(self._host.submit(work))


async def _ask(forget: Callable[..., Awaitable[None]], name: str) -> None:
    try:
        await forget(name, timeout=CALL_TIMEOUT)
    except ServerError as error:
        if not is_in_use(error):
            raise


def _server_of(claim: Claim) -> str | None:
    return None if claim.record is None else claim.record.server


def _rests(claim: Claim) -> bool:
    return claim.record is not None and claim.record.rests


def _remove(claims: Sequence[Claim]) -> int:
    removed = 0
    for claim in claims:
        removed += claim.remove()
        claim.release()
    return removed


def _remove_forgotten(others: Sequence[Claim]) -> int:
    """Remove files of owners that had nothing yet, and of those that no client came for.

    The rest is released: their own servers' clients are not to find them locked.
    """
    done = [claim for claim in others if claim.record is None or claim.is_forgotten()]
    removed = _remove(done)
    for claim in others:
        claim.release()
    return removed


def _ended(task: asyncio.Task[Reclaimed]) -> None:
    if task.cancelled():
        return
    error = task.exception()
    if isinstance(error, (RegistrationError, ServerUnavailable)):
        logger.info("regions of clients that are gone stay registered: %s", error)
    elif error is not None:
        logger.error("regions of clients that are gone were not reclaimed", exc_info=error)
    elif (reclaimed := task.result()).owners:
        logger.info("reclaimed what clients that are gone had left behind: %s", reclaimed)
