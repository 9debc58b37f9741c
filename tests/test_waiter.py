"""What a caller waits for: a task treats it as a future, and may go on where the answer arrives."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref

import numpy as np
import pytest
from support import until

import triton_zerocopy as tz
from triton_zerocopy._waiter import Waiter

pytestmark = pytest.mark.anyio

NAME = contextvars.ContextVar("NAME", default="nobody")


@pytest.fixture
async def waiter():
    return Waiter(asyncio.get_running_loop())


async def begin(waiter):
    """Return a task that waits, and what it writes down."""
    notes = []

    async def wait():
        NAME.set("the waiting task")
        try:
            notes.append(await waiter)
        except BaseException as error:
            notes.append(error)
            raise
        notes.append(NAME.get())
        notes.append(asyncio.current_task().get_name())

    task = asyncio.create_task(wait(), name="the task")
    await asyncio.sleep(0)
    assert not task.done()
    return task, notes


def from_a_callback(work):
    """Have the event loop call this, outside of all tasks; return what is true right after it."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(lambda: future.set_result(work()))
    return future


async def test_asyncio_takes_it_for_a_future(waiter):
    assert asyncio.isfuture(waiter)


async def test_the_task_goes_on_at_once_in_its_own_context(waiter):
    task, notes = await begin(waiter)
    told = await from_a_callback(
        lambda: (waiter.set_result("answer", at_once=True), list(notes), NAME.get())
    )
    assert told[1:] == (["answer", "the waiting task", "the task"], "nobody")
    await task


async def test_the_task_goes_on_in_the_next_round(waiter):
    task, notes = await begin(waiter)
    told = await from_a_callback(lambda: (waiter.set_result("answer", at_once=False), list(notes)))
    assert told[1] == []
    await task
    assert notes == ["answer", "the waiting task", "the task"]


async def test_it_never_goes_on_inside_another_task(waiter):
    task, notes = await begin(waiter)
    waiter.set_result("answer", at_once=True)
    assert not notes, "this task is running"
    await task
    assert notes[0] == "answer"


async def test_an_error(waiter):
    task, notes = await begin(waiter)
    waiter.set_exception(KeyError("x"))
    with pytest.raises(KeyError):
        await task
    assert isinstance(notes[0], KeyError)


async def test_a_result_that_is_there_already(waiter):
    waiter.set_result("answer", at_once=True)
    assert await waiter == "answer"
    failed = Waiter(asyncio.get_running_loop())
    failed.set_exception(KeyError("x"))
    with pytest.raises(KeyError):
        await failed


@pytest.mark.parametrize("message", [None, "enough"])
async def test_a_cancel_ends_the_waiting(waiter, message):
    task, notes = await begin(waiter)
    assert task.cancel() if message is None else task.cancel(message)
    waiter.set_result("too late", at_once=True)
    assert not waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert notes[0].args == (() if message is None else (message,))


async def test_a_cancel_after_the_result_is_not_lost(waiter):
    task, notes = await begin(waiter)
    waiter.set_result("answer", at_once=False)
    task.cancel()  # before the task could go on
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance(notes[0], asyncio.CancelledError)


@pytest.mark.parametrize("how", ["cancel", "error", "there already"])
async def test_what_the_waiting_task_had_dies_with_it(waiter, how):
    """Without the help of the garbage collector: it may be an array of a lease."""

    class Thing:
        pass

    async def wait():
        thing = Thing()
        kept.append(weakref.ref(thing))
        await waiter

    kept = []
    if how == "there already":
        waiter.set_exception(KeyError("x"))
    gc.disable()
    try:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        if how == "cancel":
            task.cancel()
        elif how == "error":
            waiter.set_exception(KeyError("x"))
        await asyncio.wait([task])
        assert isinstance(task.cancelled() or task.exception(), (bool, KeyError))
        del task
        assert kept[0]() is None
    finally:
        gc.enable()


async def test_a_timeout_ends_the_waiting(waiter):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await waiter


async def test_what_the_task_raises_is_the_tasks(waiter):
    """A callback of the event loop that gave the result does not get it."""

    async def wait():
        await waiter
        raise ValueError("mine")

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    await from_a_callback(lambda: waiter.set_result("answer", at_once=True))
    with pytest.raises(ValueError, match="mine"):
        await task


@pytest.mark.parametrize("scheme", ["grpc", "http"])
async def test_a_lone_caller_calls_again_and_again(server, scheme):
    """Each call begins where the answer to the one before arrived; nothing piles up."""
    url = server.grpc_url if scheme == "grpc" else f"http://{server.http_url}"
    async with tz.Client(url) as client, client.model("fixed", slots=1) as model:
        for number in range(1500):  # more than Python's stack is deep
            x = np.full(4, number, np.float32)
            np.testing.assert_array_equal((await model.infer({"INPUT0": x}))["OUTPUT0"], x + 1)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
async def test_what_the_caller_raises_later_has_nothing_to_do_with_the_call(server, scheme):
    url = server.grpc_url if scheme == "grpc" else f"http://{server.http_url}"
    async with tz.Client(url) as client, client.model("fixed", slots=1) as model:
        for _ in range(3):
            await model.infer({"INPUT0": np.zeros(4, np.float32)})
        error = KeyError("of the caller")
        with pytest.raises(KeyError):
            await model.infer({"INPUT0": np.zeros(4, np.float32)})
            raise error
        assert error.__context__ is None


@pytest.mark.parametrize("scheme", ["grpc", "http"])
async def test_who_is_alone_goes_on_at_once_and_others_together(server, monkeypatch, scheme):
    """Over gRPC all go on at once, as what they send next is gathered there."""
    real, told = Waiter.set_result, []

    def set_result(self, result, *, at_once):
        told.append(at_once)
        real(self, result, at_once=at_once)

    monkeypatch.setattr(Waiter, "set_result", set_result)
    x = {"INPUT0": np.zeros(4, np.float32)}
    url = server.grpc_url if scheme == "grpc" else f"http://{server.http_url}"
    async with tz.Client(url) as client, client.model("fixed", slots=8) as model:
        await asyncio.gather(*[model.infer(x) for _ in range(8)])  # all slots have memory now
        told.clear()
        for _ in range(3):
            await model.infer(x)
        assert told == [True] * 3
        told.clear()
        await asyncio.gather(*[model.infer(x) for _ in range(8)])
        # The last one has nobody to wait for.
        assert told == ([True] * 8 if scheme == "grpc" else [False] * 7 + [True])


async def test_others_run_while_a_lone_caller_calls(server):
    async with tz.Client(f"http://{server.http_url}") as client:
        async with client.model("fixed", slots=1) as model:
            rounds = []

            async def call():
                while True:
                    await model.infer({"INPUT0": np.zeros(4, np.float32)})
                    rounds.append(None)

            task = asyncio.create_task(call())
            await until(lambda: len(rounds) > 100)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
