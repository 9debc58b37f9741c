"""The life of a server as tests have it in hand, whichever server it is."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

from ._endpoints import EndpointChooser, Endpoints
from ._errors import Aborted, PortInUse, ServerError
from ._health import Identity
from ._process import ServerProcess
from ._threads import run_abortable, run_to_end

_POLL = 0.02  # seconds
_PATIENCE = 10.0  # seconds from SIGTERM to SIGKILL
_PORT_ATTEMPTS = 5
_PORT_PATIENCE = 10.0  # seconds that a restart waits for its own ports
NOT_STARTED = "The server is not started. Use it in a with block, or start() it."


class Staged(Protocol):
    """All that a server needs, ready to be started as often as wanted."""

    def launch(
        self, endpoints: Endpoints, abort: threading.Event
    ) -> tuple[ServerProcess, Identity]:
        """Start the server and wait until it is ready."""
        ...

    def log_text(self) -> str:
        """Return what the server has written."""
        ...

    def remove(self) -> None:
        """Remove all files."""
        ...


class ServerHandle(ABC):
    """A server in a process of its own: starts, ends, restarts it on the same ports."""

    def __init__(self, chooser: EndpointChooser) -> None:
        """Describe where the server listens; nothing is started yet."""
        self._chooser = chooser

        # Guards everything below. Stopping sets the event first, so that it need not wait long
        # for a start in another thread.
        self._lock = threading.RLock()
        self._abort = threading.Event()
        self._staged: Staged | None = None
        self._endpoints: Endpoints | None = None
        self._process: ServerProcess | None = None
        self._version = ""
        self._last_log = ""

    @abstractmethod
    def _stage(self, abort: threading.Event) -> Staged:
        """Write everything that the server reads."""

    def __repr__(self) -> str:
        state = f"grpc={self.grpc_url} pid={self.pid}" if self.is_running else "not running"
        return f"<{type(self).__name__} {state}>"

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
            raise ServerError(NOT_STARTED)
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
                self._staged = self._stage(abort)
                self._launch_on_free_ports(self._staged)

    def _restart(self, abort: threading.Event) -> None:
        with self._lock:
            if self._staged is None or self._process is None:
                raise ServerError(NOT_STARTED)
            self._abort = abort
            with self._torn_down_on_error():
                self._process.stop(patience=_PATIENCE)
                self._started_endpoints().remove_leftovers()
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

    def _launch_on_free_ports(self, staged: Staged) -> None:
        for attempt in range(_PORT_ATTEMPTS):
            try:
                self._launch(staged, self._chooser.choose())
            except PortInUse:
                # Between choosing a port and listening on it, anybody may take it.
                if self._chooser.is_fixed or attempt == _PORT_ATTEMPTS - 1:
                    raise
            else:
                return

    def _launch(self, staged: Staged, endpoints: Endpoints) -> None:
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
                self._started_endpoints().remove_leftovers()
        finally:
            if staged is not None:
                self._last_log = staged.log_text()
                staged.remove()
            self._process = self._staged = None

    def _started_endpoints(self) -> Endpoints:
        if self._endpoints is None:
            raise ServerError(NOT_STARTED)
        return self._endpoints
