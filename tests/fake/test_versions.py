"""What differs from release to release."""

from __future__ import annotations

import contextlib
import os
import signal

import numpy as np
import pytest
from conformance.raw import (
    PAGE,
    Gate,
    Grpc,
    Http,
    Memory,
    floats,
    infer_request,
    output,
    tensor,
    wait_until,
)
from models import MODELS, TORN

import triton_zerocopy as tz
from triton_zerocopy.testing import FakeTriton, Fault
from triton_zerocopy.testing._fake.versions import release_of

X, Y = floats(1, 2, 3, 4), floats(2, 3, 4, 5)
OWN = {name: MODELS[name] for name in ("fixed", "gate", "fail", "add_one")}
OWN["torn"] = TORN
RUNNING = Fault("ModelInfer", before="running", hold=True)


@pytest.fixture(scope="module")
def running():
    """Servers of several releases, each started when it is first asked for."""
    servers = {}
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture
def play(running, leaves_nothing):
    """Plays a release: gives a server that nothing is registered with, and its calls."""

    @contextlib.contextmanager
    def play(version, **options):
        key = (version, *options.items())
        if key not in running:
            running[key] = FakeTriton(OWN, version=version, **options)
            running[key].start()
            leaves_nothing.accept_children()
        server = running[key]
        with Grpc(server.grpc_url) as rpc:
            yield server, rpc
            if server.is_running:
                server.clear()
                server.forget()
                assert server.state().mapped == 0
            else:
                running.pop(key).stop()
            leaves_nothing.accept_children()

    return play


def begin_held(server, rpc, name, memory):
    """Begin a request that refers to a region and is held before its model reads anything."""
    memory.write(X)
    server.inject(RUNNING)
    call = rpc.begin_infer(inputs=[tensor(at=(name, 16, 0))], outputs=[output(at=(name, 16, 64))])
    wait_until(lambda: server.state().held == 1)
    return call


# Unregistering what is in use


def test_refused(play):
    with play("2.50.0") as (server, rpc), Memory() as memory:
        rpc.register("r", memory)
        call = begin_held(server, rpc, "r", memory)
        assert server.state().in_use == {"r": 2}
        text = "Cannot unregister shared memory region 'r', it is currently in use."
        assert rpc.refusal("SystemSharedMemoryUnregister", name="r") == ("INTERNAL", text)
        assert rpc.refusal("SystemSharedMemoryUnregister", name="") == (
            "INTERNAL",
            "Failed to unregister the following system shared memory regions: r ,",
        )
        server.release()
        call.result()
        rpc.unregister("r")
        assert server.state().mapped == 0


@pytest.mark.parametrize("version", ["2.53.0", "2.60.0"])
def test_deferred(play, version):
    """OK at once, and nothing shows that it is to go, except that it does."""
    with play(version) as (server, rpc), Memory() as memory, Memory() as other:
        rpc.register("r", memory)
        call = begin_held(server, rpc, "r", memory)
        rpc.unregister("r")
        assert rpc.is_registered("r")
        assert server.state().awaiting_unregister == ["r"]
        code, _ = rpc.refusal("SystemSharedMemoryRegister", name="r", key=other.key, byte_size=8)
        assert code == "ALREADY_EXISTS"
        second = rpc.begin_infer(inputs=[tensor(at=("r", 16, 0))])
        wait_until(lambda: server.state().in_use == {"r": 3})
        server.release()
        call.result()
        assert second.result().raw_output_contents == [Y]
        assert memory.read(16, 64) == Y
        assert not rpc.is_registered("r")
        assert server.state().mapped == 0
        assert rpc.infer_refusal(inputs=[tensor(at=("r", 16, 0))])[0] == "NOT_FOUND"


def test_deferred_after_a_cancel(play):
    """The OK is no fence: the late write comes after it. That the region is gone is."""
    with play("2.60.0") as (server, rpc), Memory() as memory:
        rpc.register("r", memory)
        call = begin_held(server, rpc, "r", memory)
        call.cancel()
        rpc.unregister("r")
        assert memory.read(16, 64) == bytes(16)
        server.release()
        wait_until(lambda: not rpc.is_registered("r"))
        assert memory.read(16, 64) == Y


def test_a_deferred_unregister_can_get_lost(play):
    with play("2.60.0") as (server, rpc), Memory() as memory:
        rpc.register("r", memory)
        server.lose_unregisters()
        call = begin_held(server, rpc, "r", memory)
        rpc.unregister("r")
        server.release()
        call.result()
        assert rpc.is_registered("r"), "for ever"
        rpc.unregister("r")
        assert not rpc.is_registered("r")
        assert server.state().mapped == 0


def test_all_deferred(play):
    with play("2.60.0") as (server, rpc), Memory() as one, Memory() as two:
        rpc.register("one", one)
        rpc.register("two", two)
        call = begin_held(server, rpc, "one", one)
        rpc.unregister("")
        assert list(rpc.registered()) == ["one"]
        server.release()
        call.result()
        assert not rpc.registered()


def test_at_once(play):
    """A server without a fence unmaps under the request, and dies of it."""
    with play("2.49.0") as (server, rpc), Memory() as memory:
        rpc.register("r", memory)
        call = begin_held(server, rpc, "r", memory)
        rpc.unregister("r")
        assert not rpc.is_registered("r")
        server.release()
        assert call.refusal()[0] == "UNAVAILABLE"
        wait_until(lambda: not server.is_running)
        assert "touches the region 'r', which is unmapped" in server.log_text()
        server.restart()
        with Grpc(server.grpc_url) as again:
            assert again.infer(inputs=[tensor(data=X)]).raw_output_contents == [Y]


def test_an_ensemble_that_failed_kills_its_server(play):
    """A branch that has not read its input yet does it when that is unmapped."""
    with play("2.51.0") as (server, rpc), Memory() as memory, Gate() as first:
        rpc.register("r", memory)
        busy = rpc.begin_infer("gate", [tensor(data=X), first.input])
        first.wait_until_reached()
        with Gate() as second:
            # Its branch waits for the instance of "gate" that is busy.
            inputs = [tensor(at=("r", 16, 0)), second.input]
            text = "in ensemble 'torn', ValueError: this model never works"
            assert rpc.infer_refusal("torn", inputs) == ("INTERNAL", text)
            assert server.state().queued == 1
            assert not server.state().in_use
            rpc.unregister("r")
            first.open()
            wait_until(lambda: not server.is_running)
            assert "which is unmapped" in server.log_text()
            del busy


# Registering


@pytest.mark.parametrize(
    ("version", "key", "refused"),
    [
        ("2.58.0", "triton_python_backend_shm_region_x", False),
        ("2.59.1", "triton_python_backend_shm_region_x", True),
        ("2.59.1", "/triton_python_backend_shm_region_x", False),
        ("2.60.0", "//triton_python_backend_shm_region_x", True),
    ],
)
def test_reserved_keys(play, version, key, refused):
    with play(version) as (_, rpc):
        expected = (
            (
                "INVALID_ARGUMENT",
                (
                    f"cannot register shared memory region 'r' with key '{key}' as the key contains the"
                    " reserved prefix 'triton_python_backend_shm_region_'"
                ),
            )
            if refused
            else ("INTERNAL", f"Unable to open shared memory region: '{key}'")
        )
        assert rpc.refusal("SystemSharedMemoryRegister", name="r", key=key, byte_size=8) == expected


@pytest.mark.parametrize("key", ["", "/", "//"])
def test_keys_of_slashes_only(play, key):
    with play("2.60.0") as (_, rpc):
        text = f"cannot register shared memory region 'r' - invalid shm key '{key}'"
        assert rpc.refusal("SystemSharedMemoryRegister", name="r", key=key, byte_size=8) == (
            "INVALID_ARGUMENT",
            text,
        )


def test_a_key_under_two_names(play):
    with Memory() as memory:
        with play("2.60.0") as (_, rpc):
            rpc.register("one", memory)
            fields = {"name": "two", "key": memory.key, "byte_size": 8}
            text = f"Invalid shared memory region: '{memory.key}'"
            assert rpc.refusal("SystemSharedMemoryRegister", **fields) == ("INTERNAL", text)
        with play("2.69.0", allow_client_shm=True) as (_, rpc):
            rpc.register("one", memory)
            rpc.register("two", memory)
            memory.write(X)
            answer = rpc.infer(inputs=[tensor(at=("two", 16, 0))])
            assert answer.raw_output_contents == [Y]


def test_the_offset_of_a_registration(play):
    """Older servers add it twice, and may read past the end."""
    with Memory(3 * PAGE) as memory:
        for page in range(3):
            memory.write(floats(page, page, page, page), page * PAGE)
        for version, expected in (("2.59.1", 2), ("2.60.0", 1)):
            with play(version) as (_, rpc):
                rpc.register("r", memory, 2 * PAGE, offset=PAGE)
                answer = rpc.infer(inputs=[tensor(at=("r", 16, 0))])
                assert answer.raw_output_contents == [floats(*[expected + 1] * 4)]
        with play("2.59.1") as (server, rpc):
            rpc.register("r", memory, PAGE, offset=PAGE)
            assert rpc.infer_refusal(inputs=[tensor(at=("r", 16, 0))])[0] == "UNAVAILABLE"
            wait_until(lambda: not server.is_running)
            assert "past the end of the region 'r'" in server.log_text()


def test_client_shared_memory_is_off_by_default(play):
    text = (
        "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to"
        " enable."
    )
    with (
        play("2.68.0") as (server, rpc),
        Http(server.http_url) as web,
        Memory() as memory,
    ):
        for call in ("Register", "Unregister"):
            for kind in ("System", "Cuda"):
                assert rpc.refusal(f"{kind}SharedMemory{call}", name="r") == ("UNIMPLEMENTED", text)
                path = f"/v2/{kind.lower()}sharedmemory/region/r/{call.lower()}"
                assert web.refusal("POST", path, {}) == (501, text)
        assert not rpc("SystemSharedMemoryStatus").regions
        assert web.get("/v2/systemsharedmemory/status") == []
        server.set_client_shm(allowed=True)
        rpc.register("r", memory)
        server.set_client_shm(allowed=False)
        assert rpc.refusal("SystemSharedMemoryUnregister", name="r") == ("UNIMPLEMENTED", text)
    with play("2.69.0", allow_client_shm=True) as (_, rpc), Memory() as memory:
        rpc.register("r", memory)


# Inferring


def test_a_sum_that_passes_2_to_the_64(play):
    at = ("r", -1, 16)
    with Memory() as memory:
        with play("2.58.0") as (_, rpc):
            rpc.register("r", memory)
            assert rpc.infer_refusal(inputs=[tensor(at=at)]) == (
                "INVALID_ARGUMENT",
                (
                    f"Integer overflow detected: byte_size ({2**64 - 1}) + offset (16) exceeds maximum"
                    f" value ({2**64 - 1}) for region 'r'"
                ),
            )
        with play("2.57.0") as (_, rpc):
            rpc.register("r", memory)
            rpc.infer(inputs=[tensor(data=X)], outputs=[output(at=at)])
            assert memory.read(16, 16) == Y


def test_tensors_without_bytes(play):
    empty = tensor(shape=(0,), at=("r", 0, 0))
    with Memory() as memory:
        with play("2.59.1") as (_, rpc):
            rpc.register("r", memory)
            text = "Invalid offset + byte size for shared memory region: 'r'"
            assert rpc.infer_refusal("add_one", [empty])[1] == text
        with play("2.60.0") as (_, rpc):
            rpc.register("r", memory)
            assert list(rpc.infer("add_one", [empty]).outputs[0].shape) == [0]
            past = tensor(shape=(0,), at=("r", 0, 2 * PAGE))
            text = "Invalid offset for shared memory region: 'r'"
            assert rpc.infer_refusal("add_one", [past])[1] == text
            end = ("r", 17, 2 * PAGE - 16)
            text = "Invalid offset + byte size for shared memory region: 'r'"
            assert rpc.infer_refusal(inputs=[tensor(at=end)])[1] == text


def test_an_output_requested_twice(play):
    request = infer_request("fixed", [tensor(data=X)], [output(), output()])
    with play("2.60.0") as (_, rpc):
        assert rpc.send(request).raw_output_contents == [Y]
    with play("2.69.0", allow_client_shm=True) as (server, rpc), Http(server.http_url) as web:
        text = "[request id: <id_unknown>] output 'OUTPUT0' already exists in request"
        with pytest.raises(Exception) as raised:
            rpc.send(request)
        assert raised.value.answer == ("INVALID_ARGUMENT", text)
        one = {"name": "INPUT0", "datatype": "FP32", "shape": [4], "data": [1, 2, 3, 4]}
        body = {"inputs": [one], "outputs": [{"name": "OUTPUT0"}, {"name": "OUTPUT0"}]}
        assert web.refusal("POST", "/v2/models/fixed/infer", body) == (400, text)


@pytest.mark.parametrize(
    ("version", "code", "text"),
    [
        (
            "2.57.0",
            "NOT_FOUND",
            "Request for unknown model: 'fixed' has no available versions",
        ),
        (
            "2.58.0",
            "UNAVAILABLE",
            "GRPC server is shutting down and has stopped accepting new requests.",
        ),
    ],
)
def test_what_a_server_that_ends_says(play, version, code, text):
    with play(version) as (server, rpc), Gate() as gate:
        call = rpc.begin_infer("gate", [tensor(data=X), gate.input])
        gate.wait_until_reached()
        server.terminate()
        expected = (code, text)
        wait_until(lambda: answer_of(rpc) == expected)
        assert rpc.refusal("ServerReady") == ("UNAVAILABLE", "Server exiting")
        gate.open()
        assert call.result().raw_output_contents == [Y]
        wait_until(lambda: not server.is_running)


def answer_of(rpc):
    try:
        return rpc.infer(inputs=[tensor(data=X)])
    except Exception as refused:
        return refused.answer


# The table


@pytest.mark.parametrize(
    ("version", "unregister", "client_shm"),
    [
        ("2.46.0", "at_once", True),
        ("2.49.9", "at_once", True),
        ("2.50.0", "refused", True),
        ("2.52.0", "refused", True),
        ("2.53.0", "deferred", True),
        ("2.67.0", "deferred", True),
        ("2.68.0", "deferred", False),
        ("3.0.0", "deferred", False),
    ],
)
def test_the_table(version, unregister, client_shm):
    release = release_of(version)
    assert (release.unregister, release.client_shm) == (unregister, client_shm)


@pytest.mark.parametrize("version", ["2.45.0", "1.0.0", "2.51", "24.10", "new"])
def test_versions_that_are_not_played(version):
    with pytest.raises(ValueError, match=r"looks like '2\.51\.0'|from 2\.46\.0 on"):
        FakeTriton(version=version)


# This library's own client against other releases

N = np.arange(4, dtype=np.float32)


@pytest.mark.anyio
@pytest.mark.parametrize("version", ["2.53.0", "2.60.0", "2.69.0"])
async def test_the_client_uses_shared_memory(play, version):
    options = {"allow_client_shm": True} if version == "2.69.0" else {}
    with play(version, **options) as (server, _):
        async with tz.Client(server.grpc_url) as client:
            async with client.model("fixed", slots=2) as model:
                assert model.memory == "system"
                for number in range(3):
                    result = await model.infer({"INPUT0": N + number})
                    np.testing.assert_array_equal(result["OUTPUT0"], N + number + 1)
        assert not (await server.astate()).registered
        assert not (await server.astate()).mapped


@pytest.mark.anyio
@pytest.mark.parametrize("version", ["2.49.0", "2.68.0"])
async def test_the_client_takes_the_wire(play, version):
    """Without a fence, and without permission."""
    with play(version) as (server, _):
        async with tz.Client(server.grpc_url) as client:
            async with client.model("fixed") as model:
                assert model.memory == "wire"
                result = await model.infer({"INPUT0": N})
                np.testing.assert_array_equal(result["OUTPUT0"], N + 1)
            error = tz.RegistrationError if version == "2.49.0" else tz.SharedMemoryDisabled
            with pytest.raises(error):
                await client.model("fixed", memory="system")
            assert not (await server.astate()).registered


def test_a_crash_is_a_segmentation_fault(play):
    with play("2.49.0") as (server, rpc), Memory() as memory:
        rpc.register("r", memory)
        call = begin_held(server, rpc, "r", memory)
        rpc.unregister("r")
        server.release()
        call.refusal()
        wait_until(lambda: not server.is_running)
        ended = os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
        assert ended.si_status == signal.SIGSEGV
