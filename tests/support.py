"""What several tests share."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from models import has_strings

import triton_zerocopy as tz

SHM = Path("/dev/shm")

needs_strings = pytest.mark.skipif(
    not has_strings(), reason="the server's Python is 3.13, on which it cannot take BYTES"
)
_created = set()


def _remember_created(event, arguments):
    """Note which regions this process makes: other test runs have theirs in /dev/shm too."""
    if event == "open" and str(arguments[0]).startswith(f"{SHM}/tzc-"):
        _created.add(Path(arguments[0]).name)


sys.addaudithook(_remember_created)


def own_files():
    """Return the names of this process's regions in /dev/shm."""
    return {entry.name for entry in SHM.iterdir()} & _created


async def until(condition):
    """Let the loop run until a condition holds."""
    while not condition():
        await asyncio.sleep(0.001)


async def forget_all(server, but=()):
    """Unregister what a client had to leave behind, once the server lets go of it."""
    async with tz.Client(server.grpc_url) as client:
        status = await client.triton.get_system_shared_memory_status()
        for name in set(status.regions) - set(but):
            await forget(client, name)


async def forget(client, name, memory="system"):
    """Unregister a region as another client would; for a moment after an answer it is in use."""
    while not await is_forgotten(client, name, memory):
        await asyncio.sleep(0.001)


async def is_forgotten(client, name, memory="system"):
    try:
        await getattr(client.triton, f"unregister_{memory}_shared_memory")(name)
    except Exception as error:
        assert "currently in use" in str(error)
        return False
    return True
