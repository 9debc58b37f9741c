"""Orders of the test: JSON, a line for each, answered in turn."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any

from .._faults import Fault
from .incidents import CRASHED
from .mappings import count_open
from .service import Service

_LONGEST = 1 << 30  # bytes of an order; a fault has a body


class Control:
    """Carries out orders on a `Service`.

    Args:
        service: What the orders are about.
        reader: Where they come from.
        writer: Where the answers go.
    """

    def __init__(
        self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._service = service
        self._reader = reader
        self._writer = writer
        self._orders: dict[str, Callable[..., Any]] = {
            "inject": lambda fault: service.incidents.inject(Fault.from_json(fault)),
            "clear": service.incidents.clear,
            "release": service.incidents.release,
            "state": self._state,
            "forget": service.regions.forget,
            "allow_client_shm": self._allow,
            "lose_unregisters": self._lose,
            "crash": lambda: os._exit(CRASHED),
        }

    def say(self, **facts: Any) -> None:
        """Tell the test something that it waits for."""
        self._writer.write(json.dumps(facts).encode() + b"\n")

    async def serve(self) -> None:
        """Carry out orders until the test is gone."""
        while line := await self._reader.readline():
            order = json.loads(line)
            result = self._orders[order["order"]](*order["arguments"])
            self.say(result=result)

    def _state(self) -> dict[str, Any]:
        service = self._service
        regions = [*service.regions.of_kind("system"), *service.regions.of_kind("cuda")]
        queued, running = service.repository.busy()
        return {
            "calls": service.incidents.calls,
            "registered": [region.name for region in regions],
            "in_use": {each.name: each.references for each in regions if each.references},
            "awaiting_unregister": [region.name for region in regions if region.is_awaiting],
            "mapped": count_open(),
            "queued": queued,
            "running": running,
            "held": service.incidents.held,
        }

    def _allow(self, allowed: bool) -> None:
        self._service.regions.is_allowed = allowed

    def _lose(self, count: int) -> None:
        self._service.regions.to_lose = count


async def connect(descriptor: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open the test's end of the connection, an inherited socket."""
    import socket

    connection = socket.socket(fileno=descriptor)
    return await asyncio.open_connection(sock=connection, limit=_LONGEST)
