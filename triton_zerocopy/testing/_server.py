"""The server as tests see it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ._endpoints import EndpointChooser
from ._handle import ServerHandle
from ._models import ServableModel
from ._staging import Options, StagedServer, StrPath, repository_paths


class TritonServer(ServerHandle):
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
        chooser = EndpointChooser(args, grpc_port=grpc_port, http_port=http_port)
        super().__init__(chooser)
        self._options = Options(
            models=dict(models or {}),
            repositories=repository_paths(model_repository),
            args=chooser.remaining_args,
            executable=executable,
            backend_directory=backend_directory,
            startup_timeout=startup_timeout,
            log=Path(log).absolute() if log is not None else None,
            env=dict(env or {}),
        )

    def _stage(self, abort: threading.Event) -> StagedServer:
        return StagedServer(self._options, abort)
