"""Programs that use the library and are then killed, forked or stopped, as real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

PATIENCE = 60.0  # seconds, for a program to say something

BEGIN = """
import asyncio, json, os, signal, sys
import numpy as np
import triton_zerocopy as tz

URL = sys.argv[1]

def tensor(seconds, tag=1):
    x = np.full(16, tag, np.float32)
    x[0] = seconds
    return x

def say(**what):
    print(json.dumps(what), flush=True)

async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)

async def calling(seconds, tag=1, **options):
    '''A client with one call that is with the server.'''
    client = tz.Client(URL, **options)
    model = await client.model("slow", slots=1)
    task = asyncio.create_task(model.infer({"INPUT0": tensor(seconds, tag)}))
    await until(lambda: model.statistics().in_flight == 1)
    return client, model, task

def owner_of(client):
    return client._runtime.regions.ownership.owner.id
"""


class Program:
    """A program that says what it does as lines of JSON. It is killed at the end."""

    def __init__(self, code, url, *, cwd=None):
        self._command = [sys.executable, "-u", "-c", BEGIN + textwrap.dedent(code), url]
        self._cwd = cwd

    async def __aenter__(self):
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        )
        return self

    async def __aexit__(self, *exc_info):
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.communicate()

    async def hear(self):
        """Return the next thing that it says."""
        async with asyncio.timeout(PATIENCE):
            line = await self._process.stdout.readline()
        assert line, f"it ended: {await self._process.wait()}"
        return json.loads(line)

    async def stop(self, number=signal.SIGKILL):
        """Send a signal; return the exit status."""
        self._process.send_signal(number)
        return await self.wait()

    async def wait(self):
        async with asyncio.timeout(PATIENCE):
            return await self._process.wait()
