"""A server that lies ready on disk, to be started as often as wanted."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import _health
from ._diagnosis import explain_exit, tail
from ._endpoints import Endpoints
from ._errors import Aborted, StartupTimeout
from ._models import ServableModel
from ._process import ServerProcess
from ._runtime import find_runtime

StrPath = str | os.PathLike[str]

_POLL = 0.02  # seconds


@dataclass(frozen=True)
class Options:
    """What the caller of TritonServer wants; see there."""

    models: Mapping[str, ServableModel]
    repositories: Sequence[Path]
    args: Sequence[str]
    executable: StrPath | None
    backend_directory: StrPath | None
    startup_timeout: float
    log: Path | None
    env: Mapping[str, str]


class StagedServer:
    """The temporary directory of a server, with all that it reads."""

    def __init__(self, options: Options, abort: threading.Event) -> None:
        """Write everything that the server reads.

        Args:
            options: What the caller wants.
            abort: When set, the work is broken off with Aborted.

        Raises:
            ServerError: There is no server to run, or a model cannot run on it.
        """
        self._options = options
        self._directory = Path(tempfile.mkdtemp(prefix=f"triton_zerocopy-{os.getpid()}-"))
        self._log = options.log or self._directory / "server.log"
        self._models = self._directory / "models"
        try:
            self._runtime = find_runtime(
                options.executable,
                extra_backends=options.backend_directory,
                environment=options.env,
                staging=self._directory,
                abort=abort,
            )
            self._models.mkdir()
            for name, model in options.models.items():
                model.write(self._models / name, dlpack_only=self._runtime.dlpack_only)
        except BaseException:
            self.remove()
            raise

    def launch(
        self, endpoints: Endpoints, abort: threading.Event
    ) -> tuple[ServerProcess, _health.Identity]:
        """Start the server and wait until it is ready.

        Args:
            endpoints: Where it is to listen.
            abort: When set, the work is broken off with Aborted.

        Raises:
            ServerError: It did not become ready; nothing of it runs any more.
        """
        # Seen in its answers: it is this server that is ready, not another one on that port.
        name = f"triton_zerocopy_server_{os.getpid()}_{secrets.token_hex(6)}"
        process = ServerProcess(
            self._command(name, endpoints),
            environment=self._runtime.environment,
            log=self._log,
            directory=self._directory,
            shared_memory_prefix=f"{name}_",
        )
        try:
            return process, self._await_ready(process, endpoints, name, abort)
        except BaseException:
            process.stop(patience=0)
            raise

    def log_text(self, position: int = 0) -> str:
        """Return what the server has written.

        Args:
            position: Where to begin, in bytes.
        """
        if not self._log.exists():
            return ""
        return self._log.read_bytes()[position:].decode("utf-8", "replace")

    def remove(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def _command(self, name: str, endpoints: Endpoints) -> list[str]:
        command = [str(self._runtime.executable), f"--id={name}", "--allow-metrics=false"]
        repositories = (self._models, *self._options.repositories)
        command += [f"--model-repository={repository}" for repository in repositories]
        if self._runtime.backend_directory is not None:
            command.append(f"--backend-directory={self._runtime.backend_directory}")
        command.append(f"--backend-config=python,shm-region-prefix-name={name}_")
        return [*command, *endpoints.arguments, *self._options.args]

    def _await_ready(
        self, process: ServerProcess, endpoints: Endpoints, name: str, abort: threading.Event
    ) -> _health.Identity:
        timeout = self._options.startup_timeout
        deadline = time.monotonic() + timeout
        while True:
            identity = _health.ask(endpoints.http.address, endpoints.http.port)
            if process.has_ended():
                returncode = process.stop(patience=0)
                raise explain_exit(self.log_text(process.log_start), returncode)
            if identity is not None and identity.name == name:
                return identity
            if time.monotonic() > deadline:
                raise StartupTimeout(
                    f"The server was not ready within {timeout:g} s. Give it more with"
                    " startup_timeout=, if it is busy loading. Its log ends with:\n"
                    f"{tail(self.log_text(process.log_start))}"
                )
            if abort.wait(_POLL):
                raise Aborted


def repository_paths(value: StrPath | Iterable[StrPath] | None) -> list[Path]:
    """Return the directories that the caller named, one or several."""
    if value is None:
        return []
    paths = [value] if isinstance(value, (str, os.PathLike)) else value
    found = [Path(path).absolute() for path in paths]
    for path in found:
        if not path.is_dir():
            raise FileNotFoundError(f"model_repository={path} is not a directory.")
    return found
