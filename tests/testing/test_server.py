"""The life of a server: start, stop, kill, restart."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from models import has_strings

from triton_zerocopy.testing import PythonModel, RawModel, ServerError, TritonServer
from triton_zerocopy.testing._sweep import session_members

from .conftest import Infer, wait_until

ONE = np.ones(1, np.float32)


def add_one(X: Any) -> Any:
    return X + np.float32(1)


def environment(X: Any) -> Any:
    import os

    return np.float32([float(os.environ["TRITON_ZEROCOPY_EXAMPLE"])])


FLOATS: dict[str, Any] = {
    "inputs": {"X": ("FP32", [-1])},
    "outputs": {"Y": ("FP32", [-1])},
}
ADD_ONE = PythonModel(add_one, **FLOATS)


@pytest.mark.anyio
async def test_async_block(infer: Infer) -> None:
    """It is ready inside the block and gone after it."""
    async with TritonServer({"add_one": ADD_ONE}) as server:
        assert infer(server, "add_one", {"X": ONE})["Y"].tolist() == [2]
        assert server.is_running
        assert server.version == "2.51.0"
        assert server.grpc_url.startswith("127.0.0.1:")
        assert repr(server) == f"<TritonServer grpc={server.grpc_url} pid={server.pid}>"
        pid = server.pid

    assert session_members(pid) == []
    assert not server.is_running
    assert "Signal (15) received" in server.log_text()


def test_the_repositories_of_the_caller_are_served_too(tmp_path: Path, infer: Infer) -> None:
    """As many as there are; nothing in them is touched but what the server itself writes."""
    for number in "12":
        ADD_ONE.write(tmp_path / number / f"model{number}", dlpack_only=not has_strings())
    repositories = [tmp_path / "1", str(tmp_path / "2")]

    with TritonServer({"own": ADD_ONE}, model_repository=repositories) as server:
        for name in ("model1", "model2", "own"):
            assert infer(server, name, {"X": ONE})["Y"].tolist() == [2]
        server.kill()


@pytest.mark.anyio
async def test_a_killed_server_comes_back_on_its_ports(infer: Infer) -> None:
    """With its models, and as often as wanted; the log goes on."""
    others = set(_shared_memory())
    async with TritonServer({"add_one": ADD_ONE}) as server:
        urls, first = (server.grpc_url, server.http_url), server.pid
        assert len(session_members(first)) == 2

        await server.akill()

        assert not server.is_running
        assert session_members(first) == []
        assert set(_shared_memory()) == others

        await server.arestart()

        assert (server.grpc_url, server.http_url) == urls
        assert server.pid != first
        assert infer(server, "add_one", {"X": ONE})["Y"].tolist() == [2]
        assert server.log_text().count("Started GRPCInferenceService") == 2
        os.kill(server.pid, signal.SIGKILL)  # a crash, as seen from here
        server.restart()
        assert server.is_running
        await server.akill()


def test_a_running_server_is_restarted_politely() -> None:
    """And can be used again after it was stopped."""
    server = TritonServer()
    for _ in range(2):
        with server:
            server.restart()
            assert server.log_text().count("Signal (15) received") == 1


def test_terminate_asks_only(infer: Infer) -> None:
    """The server itself decides when it ends."""
    with TritonServer() as server:
        server.terminate()
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
        assert not server.is_running


def test_what_a_stopped_server_cannot_do() -> None:
    """It says how it can be started; stopping it is harmless."""
    server = TritonServer()
    server.stop()
    server.kill()
    server.terminate()
    for use in (lambda: server.grpc_url, lambda: server.pid, server.restart):
        with pytest.raises(ServerError, match=r"not started.*start\(\) it"):
            use()
    with server, pytest.raises(ServerError, match="started already"):
        server.start()
    assert repr(server) == "<TritonServer not running>"


def test_arguments_environment_and_log(tmp_path: Path, infer: Infer) -> None:
    """They reach the server; the log stays and is appended to."""
    log = tmp_path / "log"
    log.write_text("before\n")
    with TritonServer(
        {"environment": PythonModel(environment, **FLOATS)},
        args=["--model-control-mode=explicit"],
        env={"TRITON_ZEROCOPY_EXAMPLE": "7"},
        log=log,
    ) as server:
        with grpcclient.InferenceServerClient(server.grpc_url) as client:
            assert not client.is_model_ready("environment")
            client.load_model("environment")
        assert infer(server, "environment", {"X": ONE})["Y"].tolist() == [7]
        server.kill()
    assert log.read_text().startswith("before\n")
    assert "MODE_EXPLICIT" in server.log_text() == log.read_text()


def test_unix_sockets(tmp_path: Path, infer: Infer) -> None:
    """The urls say where they are."""
    sockets = tmp_path / "grpc", tmp_path / "http"
    args = [f"--grpc-address=unix:{sockets[0]}", "--http-address", f"unix:{sockets[1]}"]

    with TritonServer({"add_one": ADD_ONE}, args=args) as server:
        assert server.http_url == f"unix:{sockets[1]}"
        assert infer(server, "add_one", {"X": ONE})["Y"].tolist() == [2]
        server.kill()


@pytest.fixture
def c_backend(tmp_path: Path) -> Path:
    """A directory with a backend in C, which accepts any model."""
    directory = tmp_path / "backends" / "nothing"
    directory.mkdir(parents=True)
    source = tmp_path / "nothing.c"
    source.write_text("void *TRITONBACKEND_ModelInstanceExecute() { return 0; }\n")
    library = directory / "libtriton_nothing.so"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")
    return directory.parent


def test_more_backends(c_backend: Path, infer: Infer) -> None:
    """They join those of the server."""
    config = """
    backend: "nothing"
    input [ { name: "X" data_type: TYPE_FP32 dims: [ 1 ] } ]
    output [ { name: "Y" data_type: TYPE_FP32 dims: [ 1 ] } ]
    """
    models = {"nothing": RawModel(config), "add_one": ADD_ONE}
    with TritonServer(models, backend_directory=c_backend) as server:
        with grpcclient.InferenceServerClient(server.grpc_url) as client:
            assert client.is_model_ready("nothing")
        assert infer(server, "add_one", {"X": ONE})["Y"].tolist() == [2]
        server.kill()


def test_chosen_ports_survive_a_race(monkeypatch: pytest.MonkeyPatch, taken_port: int) -> None:
    """A chosen port that was taken meanwhile is replaced."""
    from triton_zerocopy.testing import _endpoints, _ports

    ports = iter([taken_port, *(_ports.choose() for _ in range(3))])
    monkeypatch.setattr(_ports, "choose", lambda **_: next(ports))
    monkeypatch.setattr(_endpoints.Endpoint, "check_free", lambda _: None)

    with TritonServer() as server:
        assert server.grpc_url != f"127.0.0.1:{taken_port}"


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_stop_ends_a_start_in_another_thread() -> None:
    """The start says so."""
    server = TritonServer({"add_one": ADD_ONE})
    outcome: list[object] = []

    def start() -> None:
        try:
            server.start()
        except ServerError as error:
            outcome.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    wait_until(lambda: "loading: add_one" in server.log_text())
    server.stop()
    thread.join()

    assert "stopped while it started" in str(outcome[0])


OWNER = """
import sys
from triton_zerocopy.testing import TritonServer
from tests_models import MODEL

with TritonServer({"add_one": MODEL}) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""
MODELS = """
from triton_zerocopy.testing import PythonModel

def add_one(X):
    return X + 1

MODEL = PythonModel(add_one, inputs={"X": ("FP32", [1])}, outputs={"Y": ("FP32", [1])})
"""


def test_nothing_survives_the_death_of_its_owner(tmp_path: Path) -> None:
    """Not even when the tests are killed."""
    (tmp_path / "tests_models.py").write_text(MODELS)
    (tmp_path / "owner.py").write_text(OWNER)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    owner = subprocess.Popen(
        [sys.executable, tmp_path / "owner.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": ":".join(sys.path)},
    )
    assert owner.stdout is not None
    assert owner.stdin is not None
    pid = int(owner.stdout.readline())
    assert len(session_members(pid)) == 2
    assert len(_shared_memory(owner.pid)) == 1

    owner.kill()
    owner.wait()

    wait_until(
        lambda: not (session_members(pid) or _shared_memory(owner.pid) or list(temporary.iterdir()))
    )
    owner.stdin.close()
    owner.stdout.close()


def _shared_memory(owner: int | None = None) -> list[str]:
    prefix = f"triton_zerocopy_server_{owner or os.getpid()}_"
    return [path.name for path in Path("/dev/shm").iterdir() if path.name.startswith(prefix)]
