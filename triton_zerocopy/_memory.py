"""Which memory a model uses: what was asked for, or for "auto" what this server can see."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from ._errors import RegionError, RegistrationError
from ._registration import check_release
from ._runtime import Runtime
from ._urls import count_servers

logger = logging.getLogger("triton_zerocopy")

_PROBE_BYTES: Final = 4096
_DECISIVE: Final = (RegistrationError, RegionError)


class MemoryChoice:
    """Decides once per client whether its server can see this host's shared memory."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._probe: asyncio.Task[None] | None = None
        self._is_said = False

    async def uses_shm(self, memory: str) -> bool:
        """Tell whether a model with this memory has its tensors in shared memory.

        Raises:
            RegistrationError: "system" was asked for, and the server refuses or cannot.
            RegionError: "system" was asked for, and this host has no room or no /dev/shm.
            ServerUnavailable: the server did not answer, so nothing is decided.

        Cancellation: safe; the question goes on for whoever asks next.
        """
        if memory == "wire":
            return False
        if self._probe is None or _has_failed(self._probe):
            self._probe = self._runtime.spawn(self._try())
        try:
            await asyncio.shield(self._probe)
        except _DECISIVE as error:
            if memory == "system":
                raise
            if not self._is_said:
                self._is_said = True
                logger.warning("tensors go over the wire, not through shared memory: %s", error)
            return False
        return True

    async def _try(self) -> None:
        servers = await self._runtime.submit(lambda: count_servers(self._runtime.settings.target))
        if servers > 1:
            raise RegistrationError(
                f"the url leads to {servers} servers, and a region is registered with one of "
                "them only; use the url of one server"
            )
        check_release(await self._runtime.server_info())
        # Nothing but trying tells: the server's extensions list shared memory either way.
        await self._runtime.dispose(await self._runtime.new_region(_PROBE_BYTES))


def _has_failed(task: asyncio.Task[None]) -> bool:
    """Tell whether a probe ended without a decision, so that it is made again."""
    if not task.done():
        return False
    return task.cancelled() or (
        task.exception() is not None and not isinstance(task.exception(), _DECISIVE)
    )
