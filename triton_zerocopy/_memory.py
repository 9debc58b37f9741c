"""Which memory a model uses: what was asked for, or for "auto" what this server can see."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from ._cuda.device import Device
from ._errors import RegionError, RegistrationError
from ._outliving import outlive
from ._runtime import Runtime
from ._server_versions import check_release
from ._settings import cuda_device_of
from ._urls import count_servers

logger = logging.getLogger("triton_zerocopy")

_PROBE_BYTES: Final = 4096
_DECISIVE: Final = (RegistrationError, RegionError)


class MemoryChoice:
    """Decides once per client and memory whether its server can see it."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._probes: dict[int | None, asyncio.Task[None]] = {}
        self._is_said = False

    async def device(self, memory: str) -> Device | None:
        """Return the GPU that a memory is on, None for host memory.

        Raises:
            CudaError: this process cannot use that GPU.
            RegistrationError: the server cannot.
            CapacityError: the GPU is full.
            ServerUnavailable: the server did not answer.

        Cancellation: as for ``uses_shm``.
        """
        device_id = cuda_device_of(memory)
        if device_id is None:
            return None
        device = await self._runtime.open_device(device_id)
        await self._ask(device)
        return device

    async def uses_shm(self, memory: str) -> bool:
        """Tell whether a model with this memory has its tensors in shared host memory.

        Raises:
            RegistrationError: "system" was asked for, and the server refuses or cannot.
            RegionError: "system" was asked for, and this host has no room or no /dev/shm.
            ServerUnavailable: the server did not answer, so nothing is decided.

        Cancellation: safe; the question goes on for whoever asks next.
        """
        if memory == "wire":
            return False
        try:
            await self._ask(None)
        except _DECISIVE as error:
            if memory == "system":
                raise
            if not self._is_said:
                self._is_said = True
                logger.warning("tensors go over the wire, not through shared memory: %s", error)
            return False
        return True

    async def _ask(self, device: Device | None) -> None:
        key = None if device is None else device.id
        probe = self._probes.get(key)
        # A GPU that is full or refused now may not be later; "auto" decides once.
        decisive = _DECISIVE if device is None else ()
        if probe is None or _has_failed(probe, decisive):
            probe = self._probes[key] = self._runtime.spawn(self._try(device))
        await outlive(probe)

    async def _try(self, device: Device | None) -> None:
        servers = await self._runtime.submit(lambda: count_servers(self._runtime.settings.target))
        if servers > 1:
            raise RegistrationError(
                f"the url leads to {servers} servers, and a region is registered with one of "
                "them only; use the url of one server"
            )
        check_release(await self._runtime.server_info())
        # Nothing but trying tells: the server's extensions list shared memory either way.
        regions = self._runtime.regions
        await regions.dispose(await regions.new_region(_PROBE_BYTES, device))


def _has_failed(task: asyncio.Task[None], decisive: tuple[type[Exception], ...]) -> bool:
    """Tell whether a probe ended without a decision, so that it is made again."""
    if not task.done():
        return False
    return task.cancelled() or (
        task.exception() is not None and not isinstance(task.exception(), decisive)
    )
