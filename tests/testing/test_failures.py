"""Why a server does not start: each reason has its own error, which says what to do."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from triton_zerocopy.testing import (
    ModelLoadError,
    PortInUse,
    PythonModel,
    RawModel,
    ServableModel,
    ServerError,
    ServerExited,
    ServerNotFound,
    StartupTimeout,
    TritonServer,
    _endpoints,
)
from triton_zerocopy.testing._diagnosis import explain_exit
from triton_zerocopy.testing._provision import SERVER_VARIABLE


def same(X: Any) -> Any:
    return X


SAME = PythonModel(same, inputs={"X": ("FP32", [1])}, outputs={"Y": ("FP32", [1])})
ENSEMBLE = """
platform: "ensemble"
input [ { name: "X" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 1 ] } ]
ensemble_scheduling { step [ {
  model_name: "absent" model_version: -1
  input_map { key: "X" value: "X" } output_map { key: "Y" value: "Y" }
} ] }
"""


def fails(error: type[ServerError], message: str, **options: Any) -> Any:
    """Start a server that must not start; return the error."""
    with pytest.raises(error, match=message) as caught, TritonServer(**options):
        pass
    return caught.value


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (RawModel("nonsense"), 'no field named "nonsense"'),
        (RawModel('backend: "absent"'), "backend 'absent'|backend absent|configuration"),
        (RawModel(ENSEMBLE), "not available or ambiguous: absent"),
        (
            PythonModel.from_source("import absent\nTritonPythonModel = 1", config_pbtxt=""),
            "No module named 'absent'",
        ),
    ],
)
def test_a_model_that_does_not_load(model: ServableModel, message: str) -> None:
    """It is named, with the server's reason and without the server's noise."""
    error = fails(ModelLoadError, message, models={"bad": model})

    assert error.models == ("bad",)
    assert "could not load bad" in str(error)
    assert "CudaDriverHelper" not in str(error)
    assert "<frozen" not in str(error)


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("option", ["grpc_port", "http_port"])
def test_a_given_port_that_is_taken(option: str, taken_port: int) -> None:
    """It is named before anything is started."""
    error = fails(PortInUse, rf"{taken_port}.*leave out {option}", **{option: taken_port})

    assert error.port == taken_port


@pytest.mark.parametrize("option", ["grpc_port", "http_port"])
def test_a_given_port_that_is_taken_at_the_last_moment(
    option: str, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's own complaint is understood as well."""
    monkeypatch.setattr(_endpoints.Endpoint, "check_free", lambda _: None)
    other = "http_port" if option == "grpc_port" else "grpc_port"
    ports = {option: taken_port, other: _endpoints._ports.choose()}

    assert fails(PortInUse, f"port {taken_port}, which is taken", **ports).port == taken_port


def test_the_same_port_twice() -> None:
    """The server would answer with its usage text."""
    with pytest.raises(ValueError, match="are both 12345; they must differ"):
        TritonServer(grpc_port=12345, http_port=12345)


def test_no_such_executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an argument or in the environment; not there, or no program."""
    missing = tmp_path / "missing"
    text = tmp_path / "text"
    text.write_text("")
    fails(ServerNotFound, f"executable={missing} does not exist", executable=missing)
    fails(ServerNotFound, f"executable={text} cannot be executed", executable=text)
    monkeypatch.setenv(SERVER_VARIABLE, str(missing))
    fails(ServerNotFound, f"{SERVER_VARIABLE}={missing} does not exist")


def test_directories_that_are_not_there(tmp_path: Path) -> None:
    """They are named."""
    missing = tmp_path / "missing"
    fails(ServerNotFound, f"backend_directory={missing}", backend_directory=missing)
    with pytest.raises(FileNotFoundError, match=f"model_repository={missing}"):
        TritonServer(model_repository=missing)


def test_an_argument_that_the_server_does_not_know() -> None:
    """Its usage text is left out."""
    error = fails(ServerExited, "unrecognized option '--nonsense'", args=["--nonsense"])

    assert error.returncode == 1
    assert len(str(error)) < 300


def script(path: Path, text: str) -> Path:
    """Write a program that stands in for a server."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_server_that_ends(tmp_path: Path) -> None:
    """Its last words are shown."""
    program = script(tmp_path / "server", "echo last words; exit 3")

    error = fails(ServerExited, "status 3 .*\n  last words", executable=program)

    assert error.returncode == 3


def test_a_server_that_crashes(tmp_path: Path) -> None:
    """The signal is the status, as everywhere in Python."""
    program = script(tmp_path / "server", "kill -SEGV $$")

    assert fails(ServerExited, "status -11", executable=program).returncode == -11


def test_a_server_that_never_gets_ready(tmp_path: Path) -> None:
    """Its last words are shown, and its children are gone, deaf as they are."""
    program = script(
        tmp_path / "server",
        "trap '' TERM; (trap '' TERM; exec sleep 1000) & echo loading; wait",
    )

    error = fails(
        StartupTimeout,
        r"within 0.2 s. Give it more with startup_timeout=.*\n  loading",
        executable=program,
        startup_timeout=0.2,
    )

    assert isinstance(error, TimeoutError)


def test_a_deaf_server_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while."""
    from triton_zerocopy.testing import _handle

    monkeypatch.setattr(_handle, "_PATIENCE", 0.1)
    with TritonServer({"same": SAME}) as server:
        import os
        import signal

        os.kill(server.pid, signal.SIGSTOP)


def test_another_server_on_the_port_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers carry another name."""
    with TritonServer() as other:
        monkeypatch.setattr(_endpoints.Endpoint, "check_free", lambda _: None)
        fails(
            StartupTimeout,
            "not ready",
            executable=script(tmp_path / "server", "exec sleep 1000"),
            http_port=int(other.http_url.rpartition(":")[2]),
            startup_timeout=0.2,
        )
        other.kill()


@pytest.mark.parametrize(
    ("log", "kind", "message"),
    [
        (
            "tritonserver: error while loading shared libraries: libdcgm.so.3: cannot open",
            ServerExited,
            "libdcgm.so.3 is missing",
        ),
        ("error: creating server: Internal - failed to load all models", ModelLoadError, "its mod"),
        ("failed to start HTTP service: why", PortInUse, r"\(failed to start HTTP service: why\)"),
        (
            "Usage: tritonserver [options]\n  --help\nbad value",
            ServerExited,
            "arguments: bad value",
        ),
        ("", ServerExited, "nothing"),
    ],
)
def test_other_last_words(log: str, kind: type[ServerError], message: str) -> None:
    """As far as they are known."""
    error = explain_exit(log, 1)

    assert type(error) is kind
    with pytest.raises(kind, match=message):
        raise error
