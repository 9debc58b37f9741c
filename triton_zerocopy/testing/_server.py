"""The server as tests see it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ._endpoints import EndpointChooser, Endpoints
from ._errors import Aborted, PortInUse, ServerError
from ._models import ServableModel
from ._process import ServerProcess
from ._staging import Options, StagedServer, StrPath, repository_paths
from ._threads import run_abortable, run_to_end

_POLL = 0.02  # seconds
_PATIENCE = 10.0  # seconds from SIGTERM to SIGKILL
_PORT_ATTEMPTS = 5
_PORT_PATIENCE = 10.0  # seconds that a restart waits for its own ports
_NOT_STARTED = "The server is not started. Use it in a with block, or start() it."


class TritonServer:
    """A real Triton server on loopback ports, for as long as a block lasts.

        async with TritonServer(models={"double": PythonModel(...)}) as server:
            async with Client(server.grpc_url) as client: ...

    Works with `with` as well as with `async with`. The server is the one that was named, else
    `tritonserver` on PATH, else one that is downloaded once per user (about 55 MB). At the end
    of the block everything is gone: its processes, its shared memory, its temporary files.
    """

    def __init__(
        self,
        models: Mapping[str, ServableModel] | None = None,
        *,
        model_repository: StrPath | Iterable[StrPath] | None = None,
        args: Sequence[str] = (),
        executable: StrPath | None = None,
        backend_directory: StrPath | None = None,
        grpc_port: int | None = None,
        http_port: int | None = None,
        startup_timeout: float = 60.0,
        log: StrPath | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Describe the server; nothing is started yet.

        Args:
            models: Name → model, written into a repository made for this server.
            model_repository: Directories of more models.
            args: More arguments for the server, as `--model-control-mode=explicit`. An address
                may be a Unix socket: `--http-address=unix:/tmp/socket`.
            executable: The tritonserver to run. By default TRITON_ZEROCOPY_TRITONSERVER, else the
                one on PATH, else a downloaded one.
            backend_directory: Directory whose subdirectories are offered as more backends.
            grpc_port: A port of 127.0.0.1; a free one by default.
            http_port: The same for HTTP.
            startup_timeout: Seconds until it must be ready, not counting a download.
            log: File to which the server's output is appended; kept afterwards.
            env: Environment variables for the server, over those of this process.
        """
        self._chooser = EndpointChooser(args, grpc_port=grpc_port, http_port=http_port)
        self._options = Options(
            models=dict(models or {}),
            repositories=repository_paths(model_repository),
            args=self._chooser.remaining_args,
            executable=executable,
            backend_directory=backend_directory,
            startup_timeout=startup_timeout,
            log=Path(log).absolute() if log is not None else None,
            env=dict(env or {}),
        )

        # Guards everything below. Stopping sets the event first, so that it need not wait long
        # for a start in another thread.
        self._lock = threading.RLock()
        self._abort = threading.Event()
        self._staged: StagedServer | None = None
        self._endpoints: Endpoints | None = None
        self._process: ServerProcess | None = None
        self._version = ""
        self._last_log = ""

    def __repr__(self) -> str:
        state = f"grpc={self.grpc_url} pid={self.pid}" if self.is_running else "not running"
        return f"<TritonServer {state}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await self.astart()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.astop()

    @property
    def grpc_url(self) -> str:
        """Where it listens for gRPC, as `127.0.0.1:PORT`; the same after a restart."""
        return self._started_endpoints().grpc.url

    @property
    def http_url(self) -> str:
        """Where it listens for HTTP, as `127.0.0.1:PORT`; the same after a restart."""
        return self._started_endpoints().http.url

    @property
    def pid(self) -> int:
        """The process id, also of a server that has just ended; another one after a restart."""
        if self._process is None:
            raise ServerError(_NOT_STARTED)
        return self._process.pid

    @property
    def version(self) -> str:
        """The server's version, as `2.51.0`."""
        return self._version

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        process = self._process
        return process is not None and not process.has_ended()

    def log_text(self) -> str:
        """Return what the server has written so far, restarts included."""
        staged = self._staged
        return staged.log_text() if staged is not None else self._last_log

    def start(self) -> None:
        """Start the server and wait until it is ready.

        Raises:
            ServerError: It did not start; the message says why, and nothing of it is left.
        """
        self._start(threading.Event())

    async def astart(self) -> None:
        """Start the server and wait until it is ready.

        Cancellation: what was started is ended and removed before the cancellation goes on.

        Raises:
            ServerError: It did not start; the message says why, and nothing of it is left.
        """
        await run_abortable(self._start, self.stop)

    def stop(self) -> None:
        """End the server with SIGTERM, after 10 s with SIGKILL, and remove all it left.

        A start in another thread is ended, too. Harmless when repeated.
        """
        self._abort.set()
        with self._lock:
            self._tear_down(_PATIENCE)

    async def astop(self) -> None:
        """End the server with SIGTERM, after 10 s with SIGKILL, and remove all it left.

        A start in another task is ended, too. Harmless when repeated.

        Cancellation: takes effect when the server is gone.
        """
        await run_to_end(self.stop)

    def terminate(self) -> None:
        """Ask the server to end (SIGTERM) and return at once; it finishes its requests first."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server (SIGKILL) with all its processes; `restart` brings it back."""
        with self._lock:
            if self._process is not None:
                self._process.stop(patience=0)

    async def akill(self) -> None:
        """Kill the server (SIGKILL) with all its processes; `arestart` brings it back.

        Cancellation: takes effect when the server is gone.
        """
        await run_to_end(self.kill)

    def restart(self) -> None:
        """End the server if it runs, and start it again on the same ports with the same models.

        Raises:
            ServerError: It did not start again; it is stopped then.
        """
        self._restart(threading.Event())

    async def arestart(self) -> None:
        """End the server if it runs, and start it again on the same ports with the same models.

        Cancellation: the server is stopped for good before the cancellation goes on.

        Raises:
            ServerError: It did not start again; it is stopped then.
        """
        await run_abortable(self._restart, self.stop)

    def _start(self, abort: threading.Event) -> None:
        with self._lock:
            if self._staged is not None:
                raise ServerError("The server is started already.")
            self._abort = abort
            with self._torn_down_on_error():
                self._staged = StagedServer(self._options, abort)
                self._launch_on_free_ports(self._staged)

    def _restart(self, abort: threading.Event) -> None:
        with self._lock:
            if self._staged is None or self._process is None:
                raise ServerError(_NOT_STARTED)
            self._abort = abort
            with self._torn_down_on_error():
                self._process.stop(patience=_PATIENCE)
                self._await_ports(self._started_endpoints())
                self._launch(self._staged, self._started_endpoints())

    @contextlib.contextmanager
    def _torn_down_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._tear_down(0)
            if isinstance(error, Aborted):
                raise ServerError("The server was stopped while it started.") from None
            raise

    def _launch_on_free_ports(self, staged: StagedServer) -> None:
        for attempt in range(_PORT_ATTEMPTS):
            try:
                self._launch(staged, self._chooser.choose())
            except PortInUse:
                # Between choosing a port and listening on it, anybody may take it.
                if self._chooser.is_fixed or attempt == _PORT_ATTEMPTS - 1:
                    raise
            else:
                return

    def _launch(self, staged: StagedServer, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._process, identity = staged.launch(endpoints, self._abort)
        self._version = identity.version

    def _await_ports(self, endpoints: Endpoints) -> None:
        deadline = time.monotonic() + _PORT_PATIENCE
        while True:
            try:
                endpoints.check_free()
            except PortInUse:
                if time.monotonic() > deadline:
                    raise
                if self._abort.wait(_POLL):
                    raise Aborted from None
            else:
                return

    def _tear_down(self, patience: float) -> None:
        process, staged = self._process, self._staged
        try:
            if process is not None:
                process.stop(patience=patience)
        finally:
            if staged is not None:
                self._last_log = staged.log_text()
                staged.remove()
            self._process = self._staged = None

    def _started_endpoints(self) -> Endpoints:
        if self._endpoints is None:
            raise ServerError(_NOT_STARTED)
        return self._endpoints
