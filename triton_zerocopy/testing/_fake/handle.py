"""`FakeTriton` as tests see it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .._endpoints import EndpointChooser
from .._errors import ServerError
from .._faults import Fault
from .._handle import NOT_STARTED, ServerHandle
from .._models import ServableModel
from .._staging import StrPath, repository_paths
from .._threads import run_to_end
from .launching import Options, StagedFake
from .versions import parse

Result = TypeVar("Result")

_RESTRICTABLE = (
    *("health", "metadata", "inference", "shared-memory"),
    *("model-config", "model-repository", "statistics"),
)


@dataclass(frozen=True)
class FakeState:
    """What a `FakeTriton` is doing.

    Attributes:
        calls: How often each call was made since the start, by its name in gRPC; those of HTTP
            count under the same names.
        registered: Names of the regions that status calls return.
        in_use: Region → how many tensors of requests refer to it.
        awaiting_unregister: Regions that go when their last request ends.
        mapped: How many shared memory objects the process has mapped, as the kernel counts.
        queued: How many requests wait for an instance of their model.
        running: How many have one.
        held: How many calls a fault holds.
    """

    calls: Mapping[str, int]
    registered: Sequence[str]
    in_use: Mapping[str, int]
    awaiting_unregister: Sequence[str]
    mapped: int
    queued: int
    running: int
    held: int


class FakeTriton(ServerHandle):
    """A Triton server in Python: any release's behaviour, and failures on demand.

        async with FakeTriton(models={"double": PythonModel(...)}, version="2.60.0") as server:
            server.inject(Fault("ModelInfer", before="answering", drop=True))
            async with Client(server.grpc_url) as client: ...

    It is used like `TritonServer`, and takes the same models if they are for the python backend
    or ensembles. It is a process of its own, which speaks gRPC and HTTP and maps the same shared
    memory as a real server; what it does with it depends on `version`. It is for what a real
    server cannot be made to do. How your code works with Triton, `TritonServer` tells.
    """

    def __init__(
        self,
        models: Mapping[str, ServableModel] | None = None,
        *,
        version: str = "2.51.0",
        model_repository: StrPath | Iterable[StrPath] | None = None,
        explicit_load: Sequence[str] | None = None,
        allow_client_shm: bool | None = None,
        restricted: Mapping[str, tuple[str, str]] | None = None,
        cuda: str | None = None,
        grpc_port: int | None = None,
        http_port: int | None = None,
        grpc_address: str | None = None,
        http_address: str | None = None,
        startup_timeout: float = 60.0,
        log: StrPath | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Describe the server; nothing is started yet.

        Args:
            models: Name → model, written into a repository made for this server.
            version: The release to play, from 2.46.0 on.
            model_repository: Directories of more models.
            explicit_load: Lets clients load and unload models, and loads these first. By default
                all are loaded, and clients may not.
            allow_client_shm: Whether clients may register shared memory. By default as the
                release has it: from 2.68 on they may not.
            restricted: Kind of calls → key and value of a header that they must carry, as
                `{"shared-memory": ("admin", "secret")}`; for gRPC the header is
                `triton-grpc-protocol-admin`, for HTTP `admin`.
            cuda: Name of a module with the functions of cuda.bindings.runtime, by which it opens
                CUDA memory. By default it is a server without a GPU, and refuses.
            grpc_port: A port of 127.0.0.1; a free one by default.
            http_port: The same for HTTP.
            grpc_address: An address instead of 127.0.0.1, as `unix:/tmp/socket`. As with Triton,
                the name of the socket gets the port appended; `grpc_url` has it.
            http_address: The same for HTTP, whose socket has the name that is given.
            startup_timeout: Seconds until it must be ready.
            log: File to which its output is appended; kept afterwards.
            env: Environment variables for it, over those of this process.

        Raises:
            ValueError: The version is not played, or something is to be restricted that cannot be.
        """
        addresses = (("grpc", grpc_address), ("http", http_address))
        super().__init__(
            EndpointChooser(
                [f"--{protocol}-address={each}" for protocol, each in addresses if each],
                grpc_port=grpc_port,
                http_port=http_port,
            )
        )
        parse(version)
        for kind in restricted or ():
            if kind not in _RESTRICTABLE:
                raise ValueError(
                    f"{kind!r} cannot be restricted; that can {', '.join(_RESTRICTABLE)}."
                )
        self._options = Options(
            models=dict(models or {}),
            repositories=repository_paths(model_repository),
            version=version,
            explicit_load=None if explicit_load is None else list(explicit_load),
            allow_client_shm=allow_client_shm,
            restricted=dict(restricted or {}),
            cuda=cuda,
            startup_timeout=startup_timeout,
            log=Path(log).absolute() if log is not None else None,
            env=dict(env or {}),
        )

    # Faults

    def inject(self, *faults: Fault) -> None:
        """Have something go wrong with the next calls."""
        for fault in faults:
            self._order("inject", fault.to_json())

    async def ainject(self, *faults: Fault) -> None:
        """Have something go wrong with the next calls."""
        await self._in_thread(lambda: self.inject(*faults))

    def clear(self) -> None:
        """Let all further calls go well, and those that are held go on."""
        self._order("clear")

    async def aclear(self) -> None:
        """Let all further calls go well, and those that are held go on."""
        await self._in_thread(self.clear)

    def release(self) -> int:
        """Let the calls go on that a fault holds, and return how many those were."""
        count: int = self._order("release")
        return count

    async def arelease(self) -> int:
        """Let the calls go on that a fault holds, and return how many those were."""
        return await self._in_thread(self.release)

    def crash(self) -> None:
        """End the process at once from within; `restart` brings it back."""
        self._order("crash")

    async def acrash(self) -> None:
        """End the process at once from within; `arestart` brings it back."""
        await self._in_thread(self.crash)

    def freeze(self) -> None:
        """Stop the process (SIGSTOP): connections are accepted, nothing is answered or written."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen process go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    # Shared memory

    def forget(self, name: str = "") -> None:
        """Drop a registration, as if somebody else had unregistered it; all without a name.

        A request that uses the region goes on.
        """
        self._order("forget", name)

    async def aforget(self, name: str = "") -> None:
        """Drop a registration, as if somebody else had unregistered it; all without a name.

        A request that uses the region goes on.
        """
        await self._in_thread(lambda: self.forget(name))

    def set_client_shm(self, *, allowed: bool) -> None:
        """Refuse to register and unregister from now on, or do it again."""
        self._order("allow_client_shm", allowed)

    async def aset_client_shm(self, *, allowed: bool) -> None:
        """Refuse to register and unregister from now on, or do it again."""
        await self._in_thread(lambda: self.set_client_shm(allowed=allowed))

    def lose_unregisters(self, count: int = 1) -> None:
        """Let the next unregisters of regions in use be answered with OK and get lost.

        A race in servers from 2.53 on can have that effect; another unregister helps.
        """
        self._order("lose_unregisters", count)

    async def alose_unregisters(self, count: int = 1) -> None:
        """Let the next unregisters of regions in use be answered with OK and get lost.

        A race in servers from 2.53 on can have that effect; another unregister helps.
        """
        await self._in_thread(lambda: self.lose_unregisters(count))

    def state(self) -> FakeState:
        """Return what it is doing."""
        return FakeState(**self._order("state"))

    async def astate(self) -> FakeState:
        """Return what it is doing."""
        return await self._in_thread(self.state)

    def stop(self) -> None:
        """End the process with SIGTERM, after 10 s with SIGKILL, and remove all it left.

        It finishes the requests that its models work on. Harmless when repeated.
        """
        self._thaw_if_there()
        super().stop()

    def _restart(self, abort: threading.Event) -> None:
        self._thaw_if_there()
        super()._restart(abort)

    def _thaw_if_there(self) -> None:
        if self._process is not None:
            self.thaw()  # frozen it could not end by itself

    def _stage(self, abort: threading.Event) -> StagedFake:
        del abort  # this takes no time
        return StagedFake(self._options)

    def _order(self, order: str, *arguments: Any) -> Any:
        staged = self._staged
        if not isinstance(staged, StagedFake) or staged.control is None:
            raise ServerError(NOT_STARTED)
        return staged.control.order(order, *arguments)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise ServerError(NOT_STARTED)
        self._process.send_signal(number)

    async def _in_thread(self, function: Callable[[], Result]) -> Result:
        results: list[Result] = []
        await run_to_end(lambda: results.append(function()))
        return results[0]
