"""Why a slot must outlive its caller: the usual hand-made pool, and this one, under the same load.

The usual pool, as people write it over tritonclient and shared memory, and as a published package
has it: one region cut into slots, a stack of free slots, and a call that takes one, writes its
input, asks the server with a client-side timeout, and in a ``finally`` puts the slot back.

The mistake is the ``finally``. A timeout ends the client's waiting, not the server's work: the
model still reads the slot's input and writes its output, seconds later. Meanwhile the slot is on
top of the stack, and the next caller's data is in it.
"""

from __future__ import annotations

import asyncio
import secrets
from multiprocessing import resource_tracker, shared_memory

import numpy as np
import pytest
import tritonclient.grpc as protocol
import tritonclient.grpc.aio as grpcclient

import triton_zerocopy as tz

pytestmark = pytest.mark.anyio

COUNT = 16
BYTES = 4 * COUNT
LEAVERS = 12
LATENCY = 0.02
"""Seconds on the way, each way. As with any loop or link that is busy, an answer is read a while
after the server has written the output: time enough for somebody else's late write."""


class UsualPool:
    """What people write. Not to be copied."""

    def __init__(self, url, slots):
        self._client = grpcclient.InferenceServerClient(url)
        self._free = asyncio.LifoQueue()
        for slot in range(slots):
            self._free.put_nowait(slot)
        self._slots = slots
        self._name = f"usual-{secrets.token_hex(8)}"

    async def __aenter__(self):
        size = self._slots * 2 * BYTES
        self._memory = shared_memory.SharedMemory(self._name, create=True, size=size)
        # Only the unlink below is to end it.
        resource_tracker.unregister(self._memory._name, "shared_memory")
        self._values = np.frombuffer(self._memory.buf, np.float32, self._slots * 2 * COUNT)
        await self._client.register_system_shared_memory(self._name, f"/{self._name}", size)
        return self

    async def __aexit__(self, *exc_info):
        while True:
            try:
                await self._client.unregister_system_shared_memory(self._name)
                break
            except Exception as error:
                assert "in use" in str(error)  # the late writers
                await asyncio.sleep(0.005)
        await self._client.close()
        del self._values
        self._memory.close()
        resource_tracker.register(self._memory._name, "shared_memory")
        self._memory.unlink()

    async def infer(self, x, timeout):
        slot = await self._free.get()
        start = slot * 2 * COUNT
        try:
            self._values[start : start + COUNT] = x
            put = protocol.InferInput("INPUT0", [COUNT], "FP32")
            put.set_shared_memory(self._name, BYTES, 4 * start)
            got = protocol.InferRequestedOutput("OUTPUT0")
            got.set_shared_memory(self._name, BYTES, 4 * (start + COUNT))
            await self._client.infer("work", [put], outputs=[got], client_timeout=timeout)
            return self._values[start + COUNT : start + 2 * COUNT].copy()
        finally:
            self._free.put_nowait(slot)


async def wrong_results(infer, load):
    """Some callers leave before the model is done, others wait; tell who got another's result."""
    wrong = []
    have_left = False

    async def leave():
        nonlocal have_left
        for _ in range(LEAVERS):
            with pytest.raises(Exception, match="Deadline Exceeded|no result within"):
                await infer(load.tensor(0.1, COUNT), 0.08)
        have_left = True

    async def wait():
        while not have_left:
            x = load.tensor(0, COUNT)
            y = await infer(x, 10.0)
            if not np.array_equal(y, x + 1):
                wrong.append((x[1], y[1]))

    await asyncio.gather(leave(), wait(), wait())
    return wrong


async def test_the_usual_pool_mixes_up_requests(proxy, load):
    proxy.delay(LATENCY)
    async with UsualPool(proxy.url, slots=2) as pool:
        wrong = []
        for _ in range(10):  # when the late write comes is up to chance
            wrong += await wrong_results(pool.infer, load)
            if wrong:
                break
    assert wrong, "the server did write late"


async def test_this_one_never_does(proxy, witness, load):
    proxy.delay(LATENCY)
    async with tz.Client(proxy.url) as client, client.model("work", slots=2) as model:

        async def infer(x, timeout):
            return (await model.infer({"INPUT0": x}, timeout=timeout))["OUTPUT0"]

        assert await wrong_results(infer, load) == []
        await load.at_peace(model)
