"""The server is killed, stopped and restarted under load."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

import triton_zerocopy as tz
from chaos.load import PATIENCE

pytestmark = pytest.mark.anyio

SOON = 1.0  # seconds from the server's being ready to the first success


async def test_killed_and_restarted_again_and_again(unruly, witness, load):
    """Each time the callers are told, and soon after the restart they are served again."""
    loop = asyncio.get_running_loop()
    async with tz.Client(unruly.grpc_url) as client, client.model("work", slots=4) as model:
        load.start(model)
        for _ in range(2):
            await load.some("ok", 50)
            while not model.statistics().in_flight:
                await asyncio.sleep(0)
            await unruly.akill()
            await load.some("unavailable", 20)
            await unruly.arestart()
            ready = loop.time()
            await load.some("ok", 1)
            assert loop.time() - ready < SOON
        await load.stop()
        await load.at_peace(model)


async def test_stopped_and_continued(unruly, witness, load):
    """A server that is stopped for a while answers late; nobody is answered twice or wrongly."""
    async with tz.Client(unruly.grpc_url) as client, client.model("work", slots=4) as model:
        load.start(model)
        for _ in range(5):
            await load.some("ok", 20)
            os.kill(unruly.pid, signal.SIGSTOP)
            try:
                await load.some("timed out", 5)
                async with asyncio.timeout(PATIENCE):
                    while model.statistics().available:
                        await asyncio.sleep(0.001)
            finally:
                os.kill(unruly.pid, signal.SIGCONT)
        await load.stop()
        await load.at_peace(model)
    assert not load.ends["unavailable"]


async def test_killed_while_it_is_stopped(unruly, witness, load):
    """As with a server that hangs, and that a watchdog replaces."""
    async with tz.Client(unruly.grpc_url) as client, client.model("work", slots=4) as model:
        load.start(model)
        await load.some("ok", 20)
        os.kill(unruly.pid, signal.SIGSTOP)
        await load.some("timed out", 5)
        await unruly.akill()
        await unruly.arestart()
        await load.some("ok", 50)
        await load.stop()
        await load.at_peace(model)


async def test_asked_to_end_under_load(unruly, witness, load):
    """SIGTERM: it finishes what runs, refuses what comes, and comes back."""
    allowed = (tz.InferenceError,)  # "unknown model", says 2.51 while it ends
    async with tz.Client(unruly.grpc_url) as client, client.model("work", slots=4) as model:
        load.start(model, *allowed)
        await load.some("ok", 20)
        unruly.terminate()
        await load.some("refused", 5)
        await unruly.akill()
        await unruly.arestart()
        await load.some("ok", 50)
        await load.stop()
        await load.at_peace(model)
