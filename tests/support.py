"""What several tests share."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from models import has_strings

import triton_zerocopy as tz
from triton_zerocopy._owners import Record
from triton_zerocopy._urls import parse_url, server_key

SHM = Path("/dev/shm")

needs_strings = pytest.mark.skipif(
    not has_strings(), reason="the server's Python is 3.13, on which it cannot take BYTES"
)
_created = set()


def _remember_created(event, arguments):
    """Note which files this process makes: other test runs have theirs in /dev/shm too."""
    if event != "open" or not str(arguments[0]).startswith(f"{SHM}/tzc-"):
        return
    if arguments[2] & os.O_CREAT:
        _created.add(Path(arguments[0]).name)


sys.addaudithook(_remember_created)


def own_files():
    """Return the names of this process's regions and owner files in /dev/shm."""
    return {entry.name for entry in SHM.iterdir()} & _created


def own_regions():
    """The same without owner files, which are there as long as their client."""
    return {name for name in own_files() if not name.endswith(".owner")}


def owner_files(*urls):
    """Return the names of owner files, of any process, that are for a server by these urls."""
    servers = {server_key(parse_url(url)) for url in urls}
    found = set()
    for path in SHM.glob("tzc-*.owner"):
        if not path.is_file():
            continue  # a pipe, of a test in another process: opening it would block
        try:
            record = Record.parse(path.read_bytes())
        except OSError:
            continue
        if record is not None and record.server in servers:
            found.add(path.name)
    return found


def drop_owners(url):
    """Remove the owner files that were left for a server that is gone for good."""
    for name in owner_files(url):
        (SHM / name).unlink()


def url_of(server, transport):
    """Return the url of one of a server's endpoints."""
    if transport.startswith("grpc"):
        return server.grpc_url
    scheme = "http+" if server.http_url.startswith("unix:") else "http://"
    return f"{scheme}{server.http_url}"


def when_answered(model):
    """Return an event that is set when the server has answered a call of a model.

    A short call may be with the server for less than the time between two looks.
    """
    pool, is_answered = model._engine.pool, asyncio.Event()
    arrive = pool.arrive

    def arrived(slot):
        is_answered.set()
        return arrive(slot)

    pool.arrive = arrived
    return is_answered


async def until(condition):
    """Let the loop run until a condition holds."""
    while not condition():
        await asyncio.sleep(0.001)


async def forget_all(server, transport="grpc"):
    """Reclaim what a client had to leave behind, once the server lets go of it."""
    async with tz.Client(url_of(server, transport)) as client:
        reclaimed = await client.reap(timeout=30)
        assert reclaimed.in_use == 0
        assert reclaimed.owners > 0, "nothing was left behind"


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
