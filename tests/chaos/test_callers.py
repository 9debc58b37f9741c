"""Callers that leave at any point: cancels, and timeouts from a tenth of a millisecond up."""

from __future__ import annotations

import asyncio

import pytest

import triton_zerocopy as tz

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("debug", [False, True], ids=["plain", "debug"])
async def test_callers_who_leave(unruly, witness, load, debug):
    asyncio.get_running_loop().set_debug(debug)
    async with tz.Client(unruly.grpc_url) as client, client.model("work", slots=4) as model:
        load.start(model, callers=16)
        for end in ("ok", "cancelled", "timed out"):
            await load.some(end, 100)
        await load.stop()
        await load.at_peace(model)
    assert not load.ends["unavailable"]


async def test_each_timeout(unruly, witness, load):
    """Ever longer ones, so that the call is left at each of its steps."""
    async with tz.Client(unruly.grpc_url) as client, client.model("work", slots=2) as model:
        await load.count(load.infer(model))
        for number in range(200):
            timeout = 0.0001 * 1.025**number  # up to 14 ms
            await load.count(load.infer(model, 0.002, timeout=timeout))
            await load.count(load.lease(model, 0.0, 16 + number, timeout=timeout))
        await load.at_peace(model)
    assert load.ends["ok"] > 50
    assert load.ends["timed out"] > 50
