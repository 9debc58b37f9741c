"""The way to the server breaks, in each way that a TCP connection can, under load."""

from __future__ import annotations

import asyncio

import pytest

import triton_zerocopy as tz
from chaos.proxy import ANSWERS, REQUESTS

pytestmark = pytest.mark.anyio


async def in_flight(load, model, count):
    async with asyncio.timeout(20):
        while model.statistics().in_flight < count:
            await load.revive()
            await asyncio.sleep(0)


@pytest.mark.parametrize("by", ["reset", "finish"])
async def test_cut_in_mid_call(proxy, witness, load, by):
    """The server goes on and writes late; no slot of these calls is used before that."""
    async with tz.Client(proxy.url) as client, client.model("work", slots=4) as model:
        load.start(model, longest=0.05)
        for _ in range(8):
            await load.some("ok", 10)
            await in_flight(load, model, 2)
            proxy.cut(by)
        await load.stop()
        await load.at_peace(model)
    assert load.ends["unavailable"]


async def test_a_call_that_was_cut_writes_late(proxy, witness, load):
    """The slot is in quarantine as long as the server may write, whatever its caller was told."""
    loop = asyncio.get_running_loop()
    async with tz.Client(proxy.url) as client, client.model("work", slots=1) as model:
        await load.infer(model)
        sizes = []
        for _ in range(3):
            sent = proxy.passed[REQUESTS]
            await load.infer(model)
            sizes.append(proxy.passed[REQUESTS] - sent)
        sent = proxy.passed[REQUESTS]
        call = asyncio.create_task(load.infer(model, 0.5))
        while proxy.passed[REQUESTS] < sent + min(sizes):  # else the model does not run
            await asyncio.sleep(0.001)
        before = loop.time()
        proxy.cut()
        with pytest.raises(tz.ServerUnavailable):
            await call
        assert loop.time() - before < 0.4, "the caller is told at once"
        assert model.statistics().quarantined == 1
        await load.infer(model)
        assert loop.time() - before > 0.4, "the next call waited for the late write"
        await load.at_peace(model)


@pytest.mark.parametrize("direction", [REQUESTS, ANSWERS])
@pytest.mark.parametrize("by", ["reset", "finish"])
async def test_cut_after_some_bytes(proxy, witness, load, direction, by):
    """In the middle of a message, at another place each time."""
    async with tz.Client(proxy.url) as client, client.model("work", slots=4) as model:
        load.start(model)
        for _ in range(8):
            await load.some("ok", 5)
            ends = proxy.ends
            proxy.stop_after(load.rng.randint(1, 3000), direction, by=by)
            async with asyncio.timeout(20):
                while proxy.ends == ends:
                    await load.revive()  # over the cut before
                    await asyncio.sleep(0.001)
        await load.stop()
        await load.at_peace(model)
    assert load.ends["unavailable"]


@pytest.mark.parametrize("by", ["reset", "finish"])
@pytest.mark.parametrize("directions", [(), (REQUESTS,), (ANSWERS,)], ids=["both", "to", "from"])
async def test_a_black_hole_and_then_a_cut(proxy, witness, load, directions, by):
    """Nothing comes back and nothing breaks: timeouts only. Then the connection is cut."""
    async with tz.Client(proxy.url) as client, client.model("work", slots=4) as model:
        load.start(model)
        for _ in range(2):
            await load.some("ok", 20)
            proxy.black_hole(*directions)
            await load.some("timed out", 10)
            # All slots are in it; what one of them gets registered there is no call.
            await in_flight(load, model, 1)
            assert model.statistics().available == 0
            proxy.heal(by)
        await load.some("ok", 20)
        await load.stop()
        await load.at_peace(model)


async def test_a_silent_half(proxy, witness, load):
    """Bytes stop in the middle of an answer, and nothing is cut until the link heals."""
    async with tz.Client(proxy.url) as client, client.model("work", slots=4) as model:
        load.start(model)
        for direction in (ANSWERS, REQUESTS):
            await load.some("ok", 20)
            proxy.stop_after(500, direction)
            await load.some("timed out", 10)
            proxy.heal("finish")
        await load.some("ok", 20)
        await load.stop()
        await load.at_peace(model)


async def test_a_slow_link(proxy, witness, load):
    async with tz.Client(proxy.url) as client, client.model("work", slots=4) as model:
        proxy.delay(0.02)
        load.start(model, longest=0.04)
        await load.some("ok", 40)
        await load.some("timed out", 10)
        proxy.delay(0)
        await load.stop()
        await load.at_peace(model)
    assert not load.ends["unavailable"]


async def test_cut_and_the_server_killed_at_once(unruly, proxy, witness, load):
    load.server = None  # this test ends it, and starts it again
    async with tz.Client(proxy.url) as client, client.model("work", slots=4) as model:
        load.start(model)
        await load.some("ok", 20)
        await in_flight(load, model, 2)
        proxy.black_hole()
        await load.some("timed out", 5)
        await unruly.akill()
        proxy.heal()
        await load.some("unavailable", 5)
        await unruly.arestart()
        await load.some("ok", 20)
        await load.stop()
        await load.at_peace(model)


async def test_closing_in_a_black_hole(unruly, proxy, witness, load):
    """The close is bounded, and what it had to leave the next client reclaims."""
    loop = asyncio.get_running_loop()
    client = tz.Client(proxy.url)
    # With memory for all slots: what is registered in the black hole is never in flight.
    model = await client.model("work", slots=4, shapes={"INPUT0": (256,)})
    load.start(model, callers=4)
    await load.some("ok", 20)
    proxy.black_hole()
    await in_flight(load, model, 4)
    before = loop.time()
    await client.aclose(timeout=0.3)
    assert loop.time() - before < 3
    await load.drop()
    proxy.heal()
    async with tz.Client(proxy.url) as other:
        assert (await other.reap(timeout=30)).owners == 1
    assert not load.wrong
