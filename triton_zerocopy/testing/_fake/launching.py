"""Starting the process of a `FakeTriton`, and talking to it. This runs in the test's process."""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._diagnosis import tail
from .._endpoints import Endpoints
from .._errors import (
    Aborted,
    ModelLoadError,
    PortInUse,
    ServerError,
    ServerExited,
    StartupTimeout,
)
from .._health import Identity
from .._models import ServableModel
from .._process import ServerProcess

_POLL = 0.02  # seconds
_PATIENCE = 10.0  # seconds for the answer to an order


@dataclass(frozen=True)
class Options:
    """What the caller of FakeTriton wants; see there."""

    models: Mapping[str, ServableModel]
    repositories: Sequence[Path]
    version: str
    explicit_load: Sequence[str] | None
    allow_client_shm: bool | None
    restricted: Mapping[str, tuple[str, str]]
    cuda: str | None
    startup_timeout: float
    log: Path | None
    env: Mapping[str, str]


class ControlLine:
    """The test's end of the connection on which its orders go."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""
        self._lock = threading.Lock()

    def order(self, order: str, *arguments: Any) -> Any:
        """Have an order carried out, and return what comes of it.

        Raises:
            ServerError: The process does not answer: it ended, or is frozen.
        """
        message = json.dumps({"order": order, "arguments": arguments}).encode() + b"\n"
        with self._lock:
            try:
                self._connection.settimeout(_PATIENCE)
                self._connection.sendall(message)
                answer = self.hear(_PATIENCE)
            except OSError as error:
                if order == "crash":
                    return None
                raise ServerError(
                    f"FakeTriton does not run, so it cannot {order!r} ({error}). restart() it."
                ) from error
        if answer is None:
            raise ServerError(
                f"FakeTriton did not {order!r} within {_PATIENCE:g} s. If it is frozen, thaw() it."
            )
        return answer["result"]

    def hear(self, timeout: float) -> Any:
        """Return what the process says next, None if it says nothing in time.

        Raises:
            ConnectionError: It is gone.
        """
        deadline = time.monotonic() + timeout
        while b"\n" not in self._received:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self._connection], [], [], left)[0]:
                return None
            data = self._connection.recv(1 << 16)
            if not data:
                raise ConnectionResetError("its end of the line is closed")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """Hang up; the process ends then, if it has not yet."""
        self._connection.close()


class StagedFake:
    """The temporary directory of a FakeTriton, and its process once it is started."""

    def __init__(self, options: Options) -> None:
        """Write the models."""
        self._options = options
        self._directory = Path(tempfile.mkdtemp(prefix=f"triton_zerocopy-{os.getpid()}-"))
        self._log = options.log or self._directory / "server.log"
        self._models = self._directory / "models"
        self.control: ControlLine | None = None
        try:
            self._models.mkdir()
            for name, model in options.models.items():
                model.write(self._models / name)
        except BaseException:
            self.remove()
            raise

    def launch(
        self, endpoints: Endpoints, abort: threading.Event
    ) -> tuple[ServerProcess, Identity]:
        """Start the process and wait until it is ready.

        Args:
            endpoints: Where it is to listen.
            abort: When set, the work is broken off with Aborted.

        Raises:
            ServerError: It did not become ready; nothing of it runs any more.
        """
        name = f"triton_zerocopy_server_{os.getpid()}_{secrets.token_hex(6)}"
        self._hang_up()
        ours, theirs = socket.socketpair()
        self.control = ControlLine(ours)
        with theirs:
            process = ServerProcess(
                self._command(name, endpoints, theirs.fileno()),
                environment=self._environment(),
                log=self._log,
                directory=self._directory,
                shared_memory_prefix=f"{name}_",
                pass_fds=(theirs.fileno(),),
            )
        try:
            self._await_ready(process, self.control, endpoints, abort)
        except BaseException:
            process.stop(patience=0)
            raise
        return process, Identity(name, self._options.version)

    def log_text(self, position: int = 0) -> str:
        """Return what the process has written.

        Args:
            position: Where to begin, in bytes.
        """
        if not self._log.exists():
            return ""
        return self._log.read_bytes()[position:].decode("utf-8", "replace")

    def remove(self) -> None:
        """Remove the directory."""
        self._hang_up()
        shutil.rmtree(self._directory, ignore_errors=True)

    @staticmethod
    def _hear(control: ControlLine) -> Any:
        try:
            return control.hear(_POLL)
        except ConnectionError:  # it ends, and is about to be found ended
            time.sleep(_POLL)
            return None

    def _hang_up(self) -> None:
        if self.control is not None:
            self.control.close()
            self.control = None

    def _command(self, name: str, endpoints: Endpoints, control: int) -> list[str]:
        options = self._options
        orders = {
            "name": name,
            "version": options.version,
            "repositories": [str(self._models), *map(str, options.repositories)],
            "load": options.explicit_load,
            "allow_client_shm": options.allow_client_shm,
            "restricted": options.restricted,
            "cuda": options.cuda,
            "grpc_address": endpoints.grpc.url,
            "http_address": endpoints.http.address,
            "http_port": endpoints.http.port,
            "control": control,
        }
        # Without the working directory, which may have modules of the names of others.
        return [sys.executable, "-P", "-m", f"{__package__}", json.dumps(orders)]

    def _environment(self) -> dict[str, str]:
        # What the test can import, its process can, too: a module for CUDA, say.
        path = os.pathsep.join(each for each in sys.path if each)
        return {**os.environ, "PYTHONPATH": path, **self._options.env}

    def _await_ready(
        self,
        process: ServerProcess,
        control: ControlLine,
        endpoints: Endpoints,
        abort: threading.Event,
    ) -> None:
        timeout = self._options.startup_timeout
        deadline = time.monotonic() + timeout
        while (said := self._hear(control)) is None:
            if process.has_ended():
                returncode = process.stop(patience=0)
                raise ServerExited(
                    f"FakeTriton ended with exit status {returncode} before it was ready. It"
                    f" wrote:\n{tail(self.log_text(process.log_start))}",
                    returncode=returncode,
                )
            if time.monotonic() > deadline:
                raise StartupTimeout(
                    f"FakeTriton was not ready within {timeout:g} s. Give it more with"
                    " startup_timeout=, if its models take long to import."
                )
            if abort.is_set():
                raise Aborted
        if said.get("problem") == "port":
            endpoint = endpoints.grpc if said["protocol"] == "grpc" else endpoints.http
            raise PortInUse(
                f"FakeTriton could not listen on {endpoint.url}: {said['text']}. Choose another"
                " port, or none to have a free one chosen.",
                port=endpoint.port,
            )
        if said.get("problem") == "model":
            raise ModelLoadError(
                f"FakeTriton could not load a model: {said['text']}", models=(said["model"],)
            )
