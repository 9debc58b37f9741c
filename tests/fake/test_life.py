"""The life of FakeTriton: start, stop, kill, restart, and whatever does not start."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conformance.raw import Grpc, Http, Memory, floats, tensor, wait_until
from models import MODELS, TORN

from triton_zerocopy.testing import (
    FakeState,
    FakeTriton,
    Fault,
    ModelLoadError,
    PortInUse,
    PythonModel,
    RawModel,
    ServerError,
    ServerExited,
    StartupTimeout,
    _endpoints,
    _ports,
)
from triton_zerocopy.testing._sweep import session_members

X, Y = floats(1, 2, 3, 4), floats(2, 3, 4, 5)
FIXED = {"fixed": MODELS["fixed"]}


def infer(server):
    with Grpc(server.grpc_url) as rpc:
        return rpc.infer(inputs=[tensor(data=X)]).raw_output_contents


def command_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


@pytest.mark.anyio
async def test_async_block():
    """It is ready inside the block and gone after it."""
    async with FakeTriton(FIXED) as server:
        assert infer(server) == [Y]
        assert server.is_running
        assert server.version == "2.51.0"
        assert repr(server) == f"<FakeTriton grpc={server.grpc_url} pid={server.pid}>"
        assert await server.astate() == FakeState(
            calls={"ModelInfer": 1},
            registered=[],
            in_use={},
            awaiting_unregister=[],
            mapped=0,
            queued=0,
            running=0,
            held=0,
        )
        # It is another program, with nothing of this process but what it was given.
        assert command_of(server.pid)[1:4] == ["-P", "-m", "triton_zerocopy.testing._fake"]
        pid = server.pid
    assert session_members(pid) == []
    assert not server.is_running
    assert "Signal received" in server.log_text()
    assert repr(server) == "<FakeTriton not running>"


@pytest.mark.anyio
async def test_all_orders_have_a_form_for_async_code():
    async with FakeTriton(FIXED, version="2.60.0") as server, asyncio.timeout(20):
        await server.ainject(Fault("ServerLive", hold=True))
        with Grpc(server.grpc_url) as rpc, Memory() as memory:
            call = rpc.begin("ServerLive")
            while not (await server.astate()).held:
                await asyncio.sleep(0.001)
            assert await server.arelease() == 1
            assert call.result().live
            await server.ainject(Fault("ServerLive", fail=("INTERNAL", "")))
            await server.aclear()
            assert rpc("ServerLive").live
            rpc.register("r", memory)
            await server.aforget("r")
            assert not rpc.registered()
            await server.aset_client_shm(allowed=False)
            assert rpc.refusal("SystemSharedMemoryUnregister")[0] == "UNIMPLEMENTED"
            await server.alose_unregisters()
        await server.acrash()
        while server.is_running:
            await asyncio.sleep(0.001)
        await server.arestart()
        assert infer(server) == [Y]
        await server.akill()


def test_a_killed_server_comes_back_on_its_ports():
    with FakeTriton(FIXED) as server:
        urls, first = (server.grpc_url, server.http_url), server.pid
        server.kill()
        assert not server.is_running
        assert session_members(first) == []
        server.restart()
        assert (server.grpc_url, server.http_url) == urls
        assert server.pid != first
        assert infer(server) == [Y]
        os.kill(server.pid, signal.SIGKILL)
        server.restart()
        assert infer(server) == [Y]
        began = time.monotonic()
        server.freeze()
        server.restart()
        assert infer(server) == [Y]
        server.freeze()
    assert time.monotonic() - began < 8, "a frozen one ends, too"


def test_stopping_does_not_wait_for_what_is_held():
    began = time.monotonic()
    with FakeTriton(FIXED) as server, Grpc(server.grpc_url) as rpc:
        server.inject(Fault("*", hold=True, calls=None))
        calls = [rpc.begin("ServerLive"), rpc.begin_infer(inputs=[tensor(data=X)])]
        wait_until(lambda: server.state().held == 2)
        server.stop()
        for call in calls:
            wait_until(call.done)
    assert time.monotonic() - began < 8


def test_what_a_stopped_server_cannot_do():
    server = FakeTriton()
    server.stop()
    server.kill()
    for use in (lambda: server.grpc_url, server.restart, server.state, server.freeze):
        with pytest.raises(ServerError, match=r"not started.*start\(\) it"):
            use()
    with server:
        with pytest.raises(ServerError, match="started already"):
            server.start()
        server.kill()
        with pytest.raises(ServerError, match=r"does not run.*restart\(\) it"):
            server.state()


def test_unix_sockets(tmp_path):
    """The urls say where they are; there, connections are dropped all together."""
    addresses = {f"{each}_address": f"unix:{tmp_path}/{each}" for each in ("grpc", "http")}
    with FakeTriton(FIXED, **addresses, grpc_port=77) as server:
        assert server.grpc_url == f"unix:{tmp_path}/grpc:77"
        assert server.http_url == f"unix:{tmp_path}/http"
        with Grpc(server.grpc_url) as rpc, Http(server.http_url) as web, Memory() as memory:
            rpc.register("r", memory)
            assert [entry["name"] for entry in web.get("/v2/systemsharedmemory/status")] == ["r"]
            server.inject(Fault("ModelInfer", drop=True))
            assert rpc.infer_refusal(inputs=[tensor(data=X)])[0] == "UNAVAILABLE"
        assert infer(server) == [Y]
        server.crash()
        wait_until(lambda: not server.is_running)
        server.restart()
        assert infer(server) == [Y]
        assert web_is_ready(server)


def test_unix_sockets_of_a_killed_server(tmp_path):
    """They are removed at its end, but not one on which somebody else listens by then."""
    addresses = {f"{each}_address": f"unix:{tmp_path}/{each}" for each in ("grpc", "http")}
    web = tmp_path / "http"
    with FakeTriton(FIXED, **addresses, grpc_port=77) as server:
        server.kill()
        assert {path.name for path in tmp_path.iterdir()} == {"grpc:77", "http"}
        web.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(web))
            other.listen()
            server.stop()
            assert list(tmp_path.iterdir()) == [web]


def web_is_ready(server):
    with Http(server.http_url) as web:
        return web("GET", "/v2/health/ready")[0] == 200


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option in ("grpc_port", "http_port"):
            with pytest.raises(PortInUse, match=f"{port}.*is taken") as raised:
                FakeTriton(**{option: port}).start()
            assert raised.value.port == port


def test_a_port_that_is_taken_at_the_last_moment(monkeypatch):
    monkeypatch.setattr(_endpoints.Endpoint, "check_free", lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken = listening.getsockname()[1]
        for option in ("grpc_port", "http_port"):
            ports = {"grpc_port": _ports.choose(), "http_port": _ports.choose()}
            with pytest.raises(PortInUse, match="could not listen on") as raised:
                FakeTriton(**ports | {option: taken}).start()
            assert raised.value.port == taken


def broken(X):
    return X + missing  # noqa: F821


def test_models_that_do_not_load(tmp_path):
    source = (
        "class TritonPythonModel:\n    def initialize(self, args):\n        raise KeyError(7)\n"
    )
    config = 'input [{ name: "X" data_type: TYPE_FP32 dims: [ 1 ] }]'
    cases = {
        "raises": (PythonModel.from_source(source, config_pbtxt=config), "KeyError: 7"),
        "c": (RawModel('backend: "identity"'), "not of 'identity'"),
        "mess": (RawModel("what is this"), "config.pbtxt"),
        "torn": (TORN, "depends on 'gate' which has no loaded version"),
    }
    for name, (model, message) in cases.items():
        with pytest.raises(ModelLoadError, match=message) as raised:
            FakeTriton({name: model}).start()
        assert raised.value.models == (name,)


def test_a_server_that_does_not_begin():
    with pytest.raises(ServerExited, match="No module named 'no_such_module'"):
        FakeTriton(cuda="no_such_module").start()
    with pytest.raises(StartupTimeout, match="not ready within 0 s"):
        FakeTriton(startup_timeout=0).start()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"restricted": {"everything": ("a", "b")}}, "'everything' cannot be restricted"),
        ({"grpc_port": 5, "http_port": 5}, "must differ"),
        ({"version": "2"}, "A version looks like"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        FakeTriton(**options)


def environment(INPUT0):
    import os
    import sys

    sys.stdout.write("spoken by the model\n")
    sys.stdout.flush()
    return INPUT0 + float(os.environ["TZC_EXAMPLE"])


def test_log_environment_and_repository(tmp_path):
    MODELS["fixed"].write(tmp_path / "models" / "own")
    log = tmp_path / "log"
    log.write_text("before\n")
    specs = {"INPUT0": ("FP64", [1])}, {"OUTPUT0": ("FP64", [1])}
    model = PythonModel(environment, inputs=specs[0], outputs=specs[1])
    with FakeTriton(
        {"environment": model},
        model_repository=tmp_path / "models",
        env={"TZC_EXAMPLE": "5"},
        log=log,
    ) as server:
        with Grpc(server.grpc_url) as rpc:
            one = tensor(datatype="FP64", shape=(1,), data=bytes(8))
            (answer,) = rpc.infer("environment", [one]).raw_output_contents
            assert answer.hex() == "0000000000001440"
            assert rpc.infer("own", [tensor(data=X)]).raw_output_contents == [Y]
        wait_until(lambda: "spoken by the model" in server.log_text())
    assert log.read_text().startswith("before\n")
    assert server.log_text() == log.read_text()
    assert not list((tmp_path / "models").rglob("__pycache__"))


def test_a_model_whose_files_change_is_loaded_again(tmp_path):
    for name in ("m", "other"):
        MODELS["fixed"].write(tmp_path / name)
    config = tmp_path / "m" / "config.pbtxt"
    with FakeTriton(model_repository=tmp_path, explicit_load=["m"]) as server:
        with Grpc(server.grpc_url) as rpc:
            entries = {entry.name: entry.state for entry in rpc("RepositoryIndex").models}
            assert entries == {"m": "READY", "other": ""}
            assert rpc.refusal("ModelMetadata", name="other")[0] == "NOT_FOUND"
            assert list(rpc("ModelMetadata", name="m").inputs[0].shape) == [4]
            config.write_text(config.read_text().replace("[ 4 ]", "[ -1 ]"))
            rpc("RepositoryModelLoad", model_name="m")
            assert list(rpc("ModelMetadata", name="m").inputs[0].shape) == [-1]
            config.write_text("nonsense")
            assert rpc.refusal("RepositoryModelLoad", model_name="m")[0] == "INTERNAL"
            assert rpc.infer("m", [tensor(data=X)]).raw_output_contents == [Y]


def test_it_ends_with_its_owner(tmp_path):
    """Also if that is killed, and whichever thread of it made it."""
    code = """
import sys, threading
from triton_zerocopy.testing import FakeTriton
server = FakeTriton()
thread = threading.Thread(target=server.start)
thread.start()
thread.join()
print(server.pid, flush=True)
sys.stdin.read()
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    pid = int(process.stdout.readline())
    assert session_members(pid) == [pid], "the thread that made it has ended, and it has not"
    process.kill()
    process.communicate()
    wait_until(lambda: not session_members(pid))
    wait_until(lambda: not list(tmp_path.iterdir()))


@pytest.mark.anyio
async def test_cancelling_a_start_leaves_nothing():
    server = FakeTriton(MODELS)
    starting = asyncio.create_task(server.astart())
    while server._process is None:
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not server.is_running


def test_stopping_ends_a_start_in_another_thread():
    server = FakeTriton(MODELS)
    errors = []

    def start():
        try:
            server.start()
        except ServerError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    wait_until(lambda: server._process is not None or not thread.is_alive())
    server.stop()
    thread.join()
    assert not server.is_running
    assert [str(error) for error in errors] in (
        ["The server was stopped while it started."],
        [],
    )
