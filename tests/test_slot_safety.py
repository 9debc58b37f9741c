"""No slot is reused while anyone may still touch it."""

from __future__ import annotations

import asyncio
import gc
import random

import numpy as np
import pytest
from models import MODELS
from support import drop_owners, forget_all, own_regions, until, url_of

import triton_zerocopy as tz
from triton_zerocopy import _copying, _engine, _planning
from triton_zerocopy.testing import TritonServer

pytestmark = pytest.mark.anyio


def tensor(seconds, tag):
    """16 floats: how long the model sleeps, then a tag that must come back plus one."""
    x = np.full(16, tag, np.float32)
    x[0] = seconds
    return x


async def test_200_random_cancels_never_mix_requests(server):
    rng = random.Random(11)
    async with tz.Client(server.grpc_url) as client, client.model("slow", slots=3) as model:
        wrong = []

        async def call(tag):
            x = tensor(rng.choice([0.0, 0.005, 0.02]), tag)
            result = await model.infer({"INPUT0": x})
            if not np.array_equal(result["OUTPUT0"], x + 1):
                wrong.append(tag)
            return tag

        doomed = [asyncio.create_task(call(tag)) for tag in range(200)]
        others = [asyncio.create_task(call(1000 + tag)) for tag in range(100)]
        loop = asyncio.get_running_loop()
        for task in doomed:
            loop.call_later(rng.random() * 1.5, task.cancel)
        results = await asyncio.gather(*doomed, return_exceptions=True)
        await asyncio.gather(*others)
        assert not wrong
        assert any(isinstance(result, asyncio.CancelledError) for result in results)
        assert any(isinstance(result, int) for result in results)
        await until(lambda: model.statistics().available == 3)
        assert model.statistics().retired == 0


async def test_a_timed_out_slot_is_not_reused_before_the_late_write(server):
    """The caller is released at once; the slot when the server has answered."""
    async with tz.Client(server.grpc_url) as client, client.model("slow", slots=1) as model:
        await model.infer({"INPUT0": tensor(0, 1)})
        loop = asyncio.get_running_loop()
        start = loop.time()
        with pytest.raises(tz.InferTimeout, match="no result within 0.05 seconds") as raised:
            await model.infer({"INPUT0": tensor(0.5, 2)}, timeout=0.05)
        assert loop.time() - start < 0.4
        assert isinstance(raised.value, TimeoutError)
        assert model.statistics().in_flight == 1, "the server still runs it"
        result = await model.infer({"INPUT0": tensor(0, 3)})
        assert loop.time() - start > 0.45, "the next call waited for the late write"
        np.testing.assert_array_equal(result["OUTPUT0"], tensor(0, 3) + 1)


async def test_the_timeout_covers_waiting_for_a_slot(server):
    async with tz.Client(server.grpc_url) as client, client.model("slow", slots=1) as model:
        blocker = asyncio.create_task(model.infer({"INPUT0": tensor(0.4, 1)}))
        await until(lambda: model.statistics().in_flight == 1)
        with pytest.raises(tz.InferTimeout):
            await model.infer({"INPUT0": tensor(0, 2)}, timeout=0.05)
        assert model.statistics().waiting == 0
        await blocker


async def test_a_lease_left_by_a_timeout_is_held_until_the_answer(server):
    async with tz.Client(server.grpc_url) as client, client.model("slow", slots=1) as model:
        with pytest.raises(tz.InferTimeout):
            async with model.lease() as lease:
                lease.inputs["INPUT0"][:] = tensor(0.3, 5)
                await lease.infer(timeout=0.02)
        assert model.statistics().in_flight == 1
        async with model.lease() as lease:
            assert model.statistics().in_flight == 0
            lease.inputs["INPUT0"][:] = tensor(0, 6)
            result = await lease.infer()
            np.testing.assert_array_equal(result["OUTPUT0"], tensor(0, 6) + 1)


def all_copies_in_threads(monkeypatch):
    for module in (_engine, _planning):
        monkeypatch.setattr(module, "ON_LOOP_BYTES", -1)


async def test_a_slot_is_held_while_a_thread_copies(server, monkeypatch):
    """A cancel while a large copy runs in its thread: the slot comes back after the thread."""
    import threading

    all_copies_in_threads(monkeypatch)
    async with tz.Client(server.grpc_url) as client, client.model("fixed", slots=1) as model:
        await model.infer({"INPUT0": np.zeros(4, np.float32)})
        started, go_on = threading.Event(), threading.Event()
        real = _copying.copy

        def slow_copy(*args):
            started.set()
            assert go_on.wait(10)
            real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(_copying, "copy", slow_copy)
            task = asyncio.create_task(model.infer({"INPUT0": np.ones(4, np.float32)}))
            await until(started.is_set)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert model.statistics().available == 0, "the thread still writes"
            go_on.set()
            await until(lambda: model.statistics().available == 1)


async def test_a_cancelled_lease_leaves_no_array_behind(server):
    """Or its slot would be parked until the garbage is collected, and another one made."""
    async with tz.Client(server.grpc_url) as client, client.model("slow", slots=1) as model:

        async def call():
            async with model.lease({"INPUT0": (16,)}) as lease:
                lease.inputs["INPUT0"][:] = 0.05
                await lease.infer()

        gc.disable()
        try:
            for _ in range(3):
                task = asyncio.create_task(call())
                await until(lambda: model.statistics().in_flight == 1)
                task.cancel()
                await asyncio.wait([task])
                del task
                await until(lambda: model.statistics().in_use == 0)
                assert model.statistics().parked == 0
        finally:
            gc.enable()


async def test_a_call_that_could_not_be_sent_gives_its_slot_back(server, monkeypatch):
    async with tz.Client(server.grpc_url) as client, client.model("fixed", slots=1) as model:
        x = {"INPUT0": np.ones(4, np.float32)}
        await model.infer(x)

        def refuse(message, done):
            raise RuntimeError("no")

        with monkeypatch.context() as patch:
            patch.setattr(model._engine, "_infer", refuse)
            with pytest.raises(RuntimeError, match="no"):
                await model.infer(x)
        assert model.statistics().available == 1
        np.testing.assert_array_equal((await model.infer(x))["OUTPUT0"], np.full(4, 2))
        assert [slot.waiter for slot in model._engine._slots] == [None], "which has the answer"


async def test_a_slot_is_held_until_the_last_piece_is_copied(server, monkeypatch):
    """One piece of a large copy fails while another one is still being copied."""
    import threading

    all_copies_in_threads(monkeypatch)
    monkeypatch.setattr(_copying, "PIECE", 8)
    monkeypatch.setattr(_copying, "THREADS", 2)
    async with tz.Client(server.grpc_url) as client, client.model("fixed", slots=1) as model:
        go_on = threading.Event()
        real, calls = _copying.copy, []

        def copy(target, source):
            calls.append(target)
            if len(calls) == 1:
                raise MemoryError
            assert go_on.wait(10)
            real(target, source)

        with monkeypatch.context() as patch:
            patch.setattr(_copying, "copy", copy)
            task = asyncio.create_task(model.infer({"INPUT0": np.ones(4, np.float32)}))
            await until(lambda: len(calls) == 2)
            for _ in range(20):
                await asyncio.sleep(0)
            assert model.statistics().available == 0, "a thread still writes"
            go_on.set()
            with pytest.raises(MemoryError):
                await task
        assert [target.nbytes for target in calls] == [8, 8]
        result = await model.infer({"INPUT0": np.ones(4, np.float32)})
        np.testing.assert_array_equal(result["OUTPUT0"], np.full(4, 2))


async def test_a_copy_into_out_is_finished_before_the_cancel(server, monkeypatch):
    import threading

    out = np.zeros(4, np.float32)
    async with tz.Client(server.grpc_url) as client, client.model("fixed", slots=1) as model:
        await model.infer({"INPUT0": np.zeros(4, np.float32)})
        all_copies_in_threads(monkeypatch)
        started, go_on = threading.Event(), threading.Event()
        real = _copying.copy

        def slow_copy(target, source):
            if np.shares_memory(target, out):
                started.set()
                assert go_on.wait(10)
            real(target, source)

        monkeypatch.setattr(_copying, "copy", slow_copy)
        call = model.infer({"INPUT0": np.ones(4, np.float32)}, out={"OUTPUT0": out})
        task = asyncio.create_task(call)
        await until(started.is_set)
        task.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not task.done(), "the copy writes into the caller's memory"
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        np.testing.assert_array_equal(out, np.full(4, 2))


async def test_no_copy_into_out_begins_after_the_caller_left(server):
    out = np.zeros(16, np.float32)
    async with tz.Client(server.grpc_url) as client, client.model("slow", slots=1) as model:
        with pytest.raises(tz.InferTimeout):
            await model.infer({"INPUT0": tensor(0.2, 1)}, out={"OUTPUT0": out}, timeout=0.02)
        await until(lambda: model.statistics().available == 1)
        assert not out.any()


async def test_a_call_that_is_never_answered_does_not_give_its_slot_back(leaves_nothing):
    """The server is killed under a call: the slot is in doubt, and its region is not reused."""
    async with TritonServer(models={"slow": MODELS["slow"]}) as own:
        async with tz.Client(own.grpc_url) as client, client.model("slow", slots=2) as model:
            await model.infer({"INPUT0": tensor(0, 1)})
            task = asyncio.create_task(model.infer({"INPUT0": tensor(30, 2)}))
            await until(lambda: model.statistics().in_flight == 1)
            own.kill()
            with pytest.raises(tz.ServerUnavailable):
                await task
            await until(lambda: model.statistics().quarantined == 0)
            assert model.statistics().available == 2
            with pytest.raises(tz.ServerUnavailable):
                await model.infer({"INPUT0": tensor(0, 3)})
            assert len(own_regions()) == 1, "kept without proof, and no other was made"
        drop_owners(own.grpc_url)


async def test_a_slot_of_an_ensemble_rests_after_an_error(server, monkeypatch):
    """The error is answered while the slow branch still reads the input."""
    monkeypatch.setattr(_engine, "ENSEMBLE_REST", 0.6)
    async with tz.Client(server.grpc_url) as client, client.model("ensemble", slots=1) as model:
        with pytest.raises(tz.InferenceError, match="never works"):
            await model.infer({"INPUT0": tensor(0.3, 1)})
        assert model.statistics().available == 0
        with pytest.raises(tz.InferTimeout):
            await model.infer({"INPUT0": tensor(0, 2)}, timeout=0.05)
        await until(lambda: model.statistics().available == 1)
    assert await_ready(server)


async def test_a_region_of_an_ensemble_error_is_unregistered_at_close_only(server, monkeypatch):
    """Unregistering it under a branch that still reads it would crash the server."""
    monkeypatch.setattr(_engine, "ENSEMBLE_REST", 0.2)
    client = tz.Client(server.grpc_url)
    model = await client.model("ensemble", slots=1)
    with pytest.raises(tz.InferenceError, match="never works"):
        await model.infer({"INPUT0": tensor(0, 1)})
    await until(lambda: model.statistics().available == 1)
    (name,) = await registered(client)
    slot = await model._engine.acquire()
    await model._engine.fit(slot, 1 << 20)
    model._engine.unhold(slot)
    assert len(await registered(client)) == 2, "the slot has a new region, the old one is kept"
    await model.aclose()
    await until(lambda: not client._runtime._tasks)
    assert await registered(client) == {name}
    with pytest.raises(tz.InferenceError, match="never works"):
        async with client.model("ensemble", slots=1) as other:
            await other.infer({"INPUT0": tensor(0, 1)})
    await until(lambda: not client._runtime._tasks)
    assert len(await registered(client)) == 2
    await client.aclose()


async def registered(client):
    return set((await client.triton.get_system_shared_memory_status()).regions)


def await_ready(server):
    import urllib.request

    with urllib.request.urlopen(f"http://{server.http_url}/v2/health/ready", timeout=5) as answer:
        return answer.status == 200


@pytest.mark.parametrize("transport", ["grpc", "http"])
async def test_a_loop_that_ends_mid_call_neither_hangs_nor_reuses(server, transport):
    """asyncio.run's teardown ends the call, too; the next client reclaims what is left."""
    code = f"""
import asyncio, numpy as np, triton_zerocopy as tz
async def main():
    client = tz.Client({url_of(server, transport)!r})
    model = await client.model("slow", slots=1)
    task = asyncio.create_task(model.infer({{"INPUT0": np.full(16, 0.3, np.float32)}}))
    while model.statistics().in_flight < 1:
        await asyncio.sleep(0)
asyncio.run(main())
"""
    import sys

    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    try:
        async with asyncio.timeout(30):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
    await forget_all(server, transport)
