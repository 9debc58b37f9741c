"""Waiting for work that goes on when the one who waits is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

Result = TypeVar("Result")


async def outlive(work: asyncio.Future[Result]) -> Result:
    """Wait for work that goes on when the caller is cancelled.

    What is different from ``asyncio.shield``: if the work then fails, nobody is left to be told,
    so asyncio does not log that nobody was. Each kind of work has seen to what it leaves.
    """
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(_look_at)
        raise


async def see_through(work: asyncio.Future[Result]) -> Result:
    """Wait for work to its end, also when the caller is cancelled, which is told after that."""
    try:
        return await outlive(work)
    except asyncio.CancelledError:
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                continue
        raise


async def gather_all(calls: Sequence[Any]) -> list[Any]:
    """Wait for all of them, then raise the first error there was."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return list(results)


def _look_at(work: asyncio.Future[Any]) -> None:
    if not work.cancelled():
        work.exception()
