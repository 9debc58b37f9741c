"""Running a coroutine on asyncio's own event loop, or on uvloop's."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def run(work: Coroutine[Any, Any, Result], *, uses_uvloop: bool) -> Result:
    """Run it to its end on a loop of its own."""
    factory = None
    if uses_uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)
