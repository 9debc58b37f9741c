"""This library's own client when the server, or the way to it, misbehaves."""

from __future__ import annotations

import asyncio
import gc
import typing

import numpy as np
import pytest
from models import MODELS
from support import drop_owners, needs_strings, until, url_of

import triton_zerocopy as tz
from triton_zerocopy._transports.base import ServerError
from triton_zerocopy.testing import FakeTriton, Fault
from triton_zerocopy.testing._faults import Garbage

pytestmark = pytest.mark.anyio

X = np.arange(4, dtype=np.float32)
LINK = ("UNAVAILABLE", "the link broke")
HARMLESS = {"extra_output", "repeated_output"}
NOT_SEEN_IN_MEMORY = {"shape_too_small", "data_too_short", "data_too_long"}


@pytest.fixture(params=["grpc", "http"])
def transport(request):
    return request.param


@pytest.fixture(params=["system", "wire"])
def memory(request):
    return request.param


async def works(model):
    result = await model.infer({"INPUT0": X})
    np.testing.assert_array_equal(result["OUTPUT0"], X + 1)


async def eventually(condition):
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("kind", sorted(set(typing.get_args(Garbage)) - {"strings_past_the_end"}))
async def test_garbage_is_refused_and_the_slot_is_used_again(fake, memory, kind, transport):
    """What the memory of a slot cannot show is believed: a smaller shape, or a length."""
    async with tz.Client(url_of(fake, transport), memory=memory) as client:
        async with client.model("fixed", slots=1) as model:
            await works(model)
            await fake.ainject(Fault("ModelInfer", garble=kind))
            if kind in HARMLESS:
                await works(model)
            elif kind in NOT_SEEN_IN_MEMORY and memory == "system":
                result = await model.infer({"INPUT0": X})
                size = 3 if kind == "shape_too_small" else 4
                np.testing.assert_array_equal(result["OUTPUT0"], (X + 1)[:size])
            else:
                with pytest.raises(tz.InferenceError, match="model 'fixed'"):
                    await model.infer({"INPUT0": X})
            assert model.statistics().available == 1
            await works(model)


@needs_strings
async def test_strings_past_the_end_are_refused(fake, memory, transport):
    async with tz.Client(url_of(fake, transport), memory=memory) as client:
        async with client.model("shout", slots=1) as model:
            await model.infer({"TEXT": [["a"]]})
            await fake.ainject(Fault("ModelInfer", garble="strings_past_the_end"))
            with pytest.raises(tz.InferenceError, match="BYTES tensor ends at byte 2147483651"):
                await model.infer({"TEXT": [["a"]]})
            assert (await model.infer({"TEXT": [["a"]]}))["LOUD"].tolist() == [[b"AA"]]


async def test_an_unreadable_answer(fake, transport):
    async with (
        tz.Client(url_of(fake, transport)) as client,
        client.model("fixed", slots=1) as model,
    ):
        await fake.ainject(Fault("ModelInfer", body=b"\xff\xff"))
        with pytest.raises(tz.InferenceError, match="unreadable answer"):
            await model.infer({"INPUT0": X})
        await works(model)


async def test_an_error_of_the_link_is_fenced(fake, transport):
    """The slot comes back after the late write, with another region."""
    async with (
        tz.Client(url_of(fake, transport)) as client,
        client.model("fixed", slots=1) as model,
    ):
        await works(model)
        (before,) = (await fake.astate()).registered
        await fake.ainject(
            Fault("ModelInfer", before="running", fail=LINK, goes_on=True),
            Fault("ModelInfer", before="writing", hold=True),
        )
        with pytest.raises(tz.ServerUnavailable):
            await model.infer({"INPUT0": X})
        assert model.statistics().quarantined == 1
        with pytest.raises(tz.InferTimeout):
            await model.infer({"INPUT0": X}, timeout=0.05)
        assert (await fake.astate()).registered == [before]
        await fake.arelease()
        await until(lambda: model.statistics().available == 1)
        await works(model)
        (after,) = (await fake.astate()).registered
        assert after != before


@pytest.mark.parametrize("before", ["handling", "running", "writing", "answering"])
async def test_a_call_whose_http_connection_is_cut_is_fenced(fake, before):
    """It may have run, and closing a connection stops nothing at the server."""
    async with tz.Client(url_of(fake, "http")) as client:
        async with client.model("fixed", slots=1) as model:
            await works(model)
            (name,) = (await fake.astate()).registered
            await fake.ainject(Fault("ModelInfer", before=before, drop=True))
            with pytest.raises(tz.ServerUnavailable):
                await model.infer({"INPUT0": X})
            await until(lambda: model.statistics().available == 1)
            assert name not in (await fake.astate()).registered
            await works(model)


async def test_a_question_whose_http_connection_is_cut(fake):
    async with tz.Client(url_of(fake, "http")) as client:
        await fake.ainject(Fault("ModelMetadata", drop=True), Fault("ServerReady", drop=True))
        with pytest.raises(tz.ServerUnavailable):
            await client.model("fixed")
        assert not await client.is_ready()
        assert await client.is_ready()


@pytest.mark.parametrize(
    ("method", "body"),
    [
        *[(each, b"") for each in ("ServerMetadata", "ModelMetadata", "ModelConfig")],
        *[(each, b"5") for each in ("ServerMetadata", "ModelMetadata", "ModelConfig")],
        *[(each, b"<html>") for each in ("ServerMetadata", "ModelMetadata", "ModelConfig")],
        ("ServerMetadata", b"{}"),
        ("ServerMetadata", b'{"name":"","version":5,"extensions":[]}'),
        ("ModelMetadata", b"{}"),
        ("ModelMetadata", b'{"inputs":[{"name":5,"datatype":"FP32","shape":[]}],"outputs":[]}'),
        (
            "ModelMetadata",
            b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1.5]}],"outputs":[]}',
        ),
        ("ModelMetadata", b"[" * 100_000),
        ("ModelConfig", b'{"max_batch_size":"no"}'),
        ("ModelConfig", b'{"input":[{"optional":true}]}'),
    ],
)
async def test_a_question_with_an_unreadable_answer(fake, method, body):
    async with tz.Client(url_of(fake, "http")) as client:
        await fake.ainject(Fault(method, body=body))
        with pytest.raises(tz.InferenceError, match="unreadable answer"):
            await client.model("fixed", memory="system")
        assert (await client.model("fixed")).memory == "system"


async def test_a_datatype_that_is_not_known(fake):
    body = b'{"inputs":[{"name":"X","datatype":"FP4","shape":[1]}],"outputs":[]}'
    async with tz.Client(url_of(fake, "http")) as client:
        await fake.ainject(Fault("ModelMetadata", body=body))
        with pytest.raises(tz.InputError, match="'FP4'"):
            await client.model("fixed")


async def test_an_unregister_that_gets_lost_is_repeated(transport):
    """As servers from 2.53 on may do with one that is deferred."""
    async with FakeTriton({"fixed": MODELS["fixed"]}, version="2.60.0") as server:
        async with tz.Client(url_of(server, transport)) as client:
            async with client.model("fixed", slots=1) as model:
                await works(model)
                await server.alose_unregisters()
                await server.ainject(
                    Fault("ModelInfer", before="running", fail=LINK, goes_on=True),
                    Fault("ModelInfer", before="writing", hold=True),
                )
                with pytest.raises(tz.ServerUnavailable):
                    await model.infer({"INPUT0": X})

                async def is_asked():
                    calls = (await server.astate()).calls
                    return calls.get("SystemSharedMemoryUnregister", 0) >= 2

                await eventually(is_asked)
                assert model.statistics().quarantined == 1
                await server.arelease()
                await until(lambda: model.statistics().available == 1)
                await works(model)
        state = await server.astate()
        assert (list(state.registered), state.mapped) == ([], 0)


async def test_a_region_that_was_taken_away_comes_back(fake, transport):
    async with (
        tz.Client(url_of(fake, transport)) as client,
        client.model("fixed", slots=1) as model,
    ):
        for _ in range(3):
            await works(model)
            await fake.aforget()
        await works(model)
        assert len((await fake.astate()).registered) == 1


async def test_shared_memory_that_is_switched_off_later(fake, transport):
    async with (
        tz.Client(url_of(fake, transport)) as client,
        client.model("fixed", slots=1) as model,
    ):
        await works(model)
        await fake.aforget()
        await fake.aset_client_shm(allowed=False)
        try:
            with pytest.raises(tz.SharedMemoryDisabled):
                await model.infer({"INPUT0": X})
        finally:
            await fake.aset_client_shm(allowed=True)
        await works(model)


async def test_a_registration_that_nobody_confirmed_is_taken_back(fake, transport):
    async with (
        tz.Client(url_of(fake, transport)) as client,
        client.model("fixed", slots=1) as model,
    ):
        await works(model)
        await fake.aforget()
        await fake.ainject(
            Fault("SystemSharedMemoryRegister", before="answering", fail=("UNAVAILABLE", "lost"))
        )
        with pytest.raises(tz.ServerUnavailable):
            await model.infer({"INPUT0": X})
        assert (await fake.astate()).registered == []
        await works(model)


async def test_a_failure_after_its_caller_left_is_nobodys(fake):
    """The slot's first region cannot be registered; asyncio does not log that nobody was told."""
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, said: complaints.append(said))
    async with tz.Client(fake.grpc_url) as client, client.model("fixed", slots=1) as model:
        await fake.ainject(
            Fault("SystemSharedMemoryRegister", hold=True),
            Fault("SystemSharedMemoryRegister", fail=("INTERNAL", "no")),
        )
        with pytest.raises(tz.InferTimeout):
            await model.infer({"INPUT0": X}, timeout=0.05)
        await fake.arelease()
        await until(lambda: model.statistics().available == 1)
        gc.collect()
        assert not complaints
        await works(model)


async def test_a_call_about_the_server_ends_when_its_time_is_up(fake, transport):
    """The transports see to that; for infer calls, which nobody may take back, the client does."""
    async with tz.Client(url_of(fake, transport)) as client, asyncio.timeout(20):
        await client.wait_ready()
        await fake.ainject(*[Fault(rpc, hold=True) for rpc in ("ServerReady", "ServerMetadata")])
        away = client._runtime.transport
        for ask in (away.is_ready, away.server_info):
            with pytest.raises(ServerError) as raised:
                await ask(timeout=0.05)
            assert raised.value.code == "DEADLINE_EXCEEDED"
        await fake.arelease()


@pytest.mark.parametrize("code", ["INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"])
async def test_answers_of_the_server_free_the_slot_at_once(fake, code, transport):
    async with (
        tz.Client(url_of(fake, transport)) as client,
        client.model("fixed", slots=1) as model,
    ):
        await works(model)
        (before,) = (await fake.astate()).registered
        await fake.ainject(Fault("ModelInfer", fail=(code, "no such luck")))
        with pytest.raises(tz.InferenceError, match="no such luck"):
            await model.infer({"INPUT0": X})
        assert model.statistics().available == 1
        await works(model)
        assert (await fake.astate()).registered == [before]


@pytest.mark.parametrize("code", ["UNAVAILABLE", "CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED"])
async def test_answers_that_may_be_of_the_link_are_fenced(fake, code, transport):
    """Over HTTP, two of them are 400, which is Triton's own answer."""
    is_fenced = transport == "grpc" or code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
    async with (
        tz.Client(url_of(fake, transport)) as client,
        client.model("fixed", slots=1) as model,
    ):
        await works(model)
        (before,) = (await fake.astate()).registered
        await fake.ainject(Fault("ModelInfer", fail=(code, "maybe")))
        with pytest.raises((tz.InferenceError, tz.ServerUnavailable)):
            await model.infer({"INPUT0": X})
        await until(lambda: model.statistics().available == 1)
        await works(model)
        assert (before not in (await fake.astate()).registered) is is_fenced


async def test_a_server_that_never_answers(fake, transport):
    """Timeouts end the waiting; the slot is held until there is an answer."""
    async with (
        tz.Client(url_of(fake, transport)) as client,
        client.model("fixed", slots=1) as model,
    ):
        await works(model)
        await fake.ainject(Fault("ModelInfer", hold=True))
        with pytest.raises(tz.InferTimeout):
            await model.infer({"INPUT0": X}, timeout=0.05)
        assert model.statistics().in_flight == 1
        await fake.arelease()
        await until(lambda: model.statistics().available == 1)
        await works(model)
        fake.freeze()
        with pytest.raises(tz.InferTimeout):
            await model.infer({"INPUT0": X}, timeout=0.05)
        fake.thaw()
        await until(lambda: model.statistics().available == 1)


async def test_a_crash_in_the_middle_of_a_call(transport):
    async with FakeTriton({"fixed": MODELS["fixed"]}) as server:
        async with tz.Client(url_of(server, transport)) as client:
            async with client.model("fixed", slots=2) as model:
                await works(model)
                await server.ainject(Fault("ModelInfer", before="writing", crash=True))
                with pytest.raises(tz.ServerUnavailable):
                    await model.infer({"INPUT0": X})
                await server.arestart()
                await client.wait_ready(timeout=20)
                await works(model)
        assert not (await server.astate()).registered
        drop_owners(url_of(server, transport))  # the one in doubt is left to the next client
