"""The server's half of the emulation, as Python sees it."""

from __future__ import annotations

import dataclasses
import http.client
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triton_zerocopy.testing import ServableModel, TritonServer


def server_environment(
    library: Path,
    *,
    devices: int = 1,
    order: Sequence[int] = (),
    peers: bool = False,
    log: Path | None = None,
) -> dict[str, str]:
    """Return the variables for `TritonServer(env=...)`.

    Args:
        library: What `build` returned.
        devices: How many GPUs the machine has.
        order: Physical numbers of those that the server sees, in its order; all by default.
        peers: Whether GPUs reach each other's memory.
        log: File that tells what the server allocates and maps, see `ServerLog`.
    """
    environment = {
        # Preloaded, since the executable's RPATH comes before any search path.
        "LD_PRELOAD": str(library),
        # For libcuda.so, which is opened by name. TritonServer puts its own directories behind.
        "LD_LIBRARY_PATH": str(library.parent),
        "EMUCUDA_DEVICES": str(devices),
        "EMUCUDA_ORDER": ",".join(map(str, order)),
        "EMUCUDA_PEER": "1" if peers else "0",
    }
    return environment | ({"EMUCUDA_LOG": str(log)} if log else {})


class CudaServer(TritonServer):
    """A real server on emulated GPUs.

    Attributes:
        memory: what it does with memory.
    """

    def __init__(
        self,
        models: Mapping[str, ServableModel],
        *,
        library: Path,
        directory: Path,
        devices: int = 1,
        order: Sequence[int] = (),
        peers: bool = False,
        **options: Any,
    ) -> None:
        """Describe the server; nothing is started yet.

        Args:
            models: Name → model.
            library: What `build` returned.
            directory: Where its log of memory goes.
            devices: See `server_environment`, as for `order` and `peers`.
            order: Which GPUs it sees.
            peers: Whether they reach each other's memory.
            options: More for TritonServer.
        """
        self.memory = ServerLog(directory / "memory.log")
        environment = server_environment(
            library, devices=devices, order=order, peers=peers, log=self.memory.path
        )
        super().__init__(models, env=environment, **options)

    def regions(self) -> dict[str, dict[str, Any]]:
        """Return the CUDA regions that are registered, by name, as its HTTP endpoint says."""
        host, port = self.http_url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        try:
            connection.request("GET", "/v2/cudasharedmemory/status")
            return {each["name"]: each for each in json.loads(connection.getresponse().read())}
        finally:
            connection.close()


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a process of the server did with memory.

    Attributes:
        pid: The process; a Python model's is not the server's.
        operation: malloc, free, gethandle, open (of another process's memory) or close.
        name: Of the memory's file.
        size: Bytes.
        device: Ordinal in the server.
        references: How often it is open, after the operation.
        error: 0, or CUDA's error.
        live_device: Allocations that the process has, after the operation.
        live_ipc: Memory of other processes that it has mapped, after the operation.
    """

    pid: int
    operation: str
    name: str
    size: int
    device: int
    references: int
    error: int
    live_device: int
    live_ipc: int


class ServerLog:
    """What the server did with memory, as its log tells."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self, operation: str | None = None) -> list[Entry]:
        """Return what is in the log, of one kind of operation or of all."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        found = [_parse(line) for line in lines]
        return [entry for entry in found if operation in (None, entry.operation)]

    def live_ipc(self) -> int:
        """Return how many pieces of other processes' memory are mapped, by living processes."""
        return sum(entry.live_ipc for entry in self._last_of_each().values())

    def live_device(self) -> int:
        """Return how many allocations there are, of living processes."""
        return sum(entry.live_device for entry in self._last_of_each().values())

    def _last_of_each(self) -> dict[int, Entry]:
        last = {entry.pid: entry for entry in self.entries()}
        return {pid: entry for pid, entry in last.items() if Path(f"/proc/{pid}").exists()}


def _parse(line: str) -> Entry:
    values = dict(pair.split("=", 1) for pair in line.split())
    numbers = {key: int(value) for key, value in values.items() if key not in _TEXTS}
    return Entry(operation=values["operation"], name=values["name"], **numbers)


_TEXTS = ("operation", "name")
