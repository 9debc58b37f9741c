"""Which server binary runs, and with which backends and environment."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ._errors import ServerNotFound
from ._interpreter import find_interpreter
from ._provision import SERVER_VARIABLE, provision_numpy, provision_server

_EXECUTABLE = "bin/tritonserver"
_STUB = "triton_python_backend_stub"
_CONTAINER_BACKENDS = Path("/opt/tritonserver/backends")


@dataclass(frozen=True)
class Runtime:
    """A server that can be started.

    Attributes:
        executable: The program.
        environment: All environment variables for it.
        backend_directory: To be passed on to the server; None to leave it to its own devices.
        dlpack_only: Whether Python models must use DLPack for all tensors.
    """

    executable: Path
    environment: Mapping[str, str]
    backend_directory: Path | None
    dlpack_only: bool = False


def find_runtime(
    executable: str | os.PathLike[str] | None,
    *,
    extra_backends: str | os.PathLike[str] | None,
    environment: Mapping[str, str],
    staging: Path,
    abort: threading.Event,
) -> Runtime:
    """Find the server: the one given, the one configured, the one on PATH, or the one provisioned.

    Args:
        executable: The server executable, if the caller named one.
        extra_backends: Directory whose subdirectories are offered as backends, before the
            server's own of the same name.
        environment: Variables to set for the server, over those of this process.
        staging: Directory of this server, for files that it needs while it runs.
        abort: When set, provisioning is ended.

    Raises:
        ServerNotFound: The named executable is not there.
        ServerError: Provisioning failed.
    """
    path = _named_executable(executable)
    if path is None:
        root = provision_server(abort) / "pytriton" / "tritonserver"
    else:
        root = path.parent.parent
    if path is not None and not _is_wheel(root):
        runtime = _own_runtime(path, environment)
    else:
        runtime = _wheel_runtime(root, environment, staging, abort)
    if extra_backends is None:
        return runtime
    merged = _merge_backends(Path(extra_backends), runtime, staging / "merged_backends")
    return replace(runtime, backend_directory=merged)


def is_provisioned_by_us() -> bool:
    """Tell whether a server that is not named would be provisioned."""
    return _named_executable(None) is None


def _named_executable(executable: str | os.PathLike[str] | None) -> Path | None:
    source = "executable="
    if executable is None and (named := os.environ.get(SERVER_VARIABLE)):
        executable, source = named, f"{SERVER_VARIABLE}="
    if executable is None:
        on_path = shutil.which("tritonserver")
        return Path(on_path).resolve() if on_path else None
    path = shutil.which(executable)
    if path is None:
        state = "cannot be executed" if Path(executable).exists() else "does not exist"
        raise ServerNotFound(
            f"{source}{os.fspath(executable)} {state}. Name a tritonserver executable, or leave it"
            " out to have one downloaded."
        )
    return Path(path).resolve()


def _is_wheel(root: Path) -> bool:
    return (root / "python_backend_stubs").is_dir() and (root / _EXECUTABLE).exists()


def _own_runtime(executable: Path, environment: Mapping[str, str]) -> Runtime:
    return Runtime(
        executable=executable,
        environment={**os.environ, **environment},
        backend_directory=None,
    )


def _wheel_runtime(
    root: Path, environment: Mapping[str, str], staging: Path, abort: threading.Event
) -> Runtime:
    python = find_interpreter()
    numpy = provision_numpy(python, abort)

    backend = staging / "backends" / "python"
    backend.mkdir(parents=True)
    for file in (root / "backends" / "python").iterdir():
        (backend / file.name).symlink_to(file)
    (backend / _STUB).symlink_to(root / "python_backend_stubs" / python.tag / _STUB)

    # The stub ignores PYTHONHOME and PYTHONPATH, but takes the first python3 on PATH for itself.
    # So it gets a virtual environment, which also keeps the interpreter's own packages away from
    # it (with a numpy 2 among them, every tensor would silently be empty).
    venv = staging / "venv"
    (venv / "bin").mkdir(parents=True)
    for name in ("python", "python3", f"python{python.tag}"):
        (venv / "bin" / name).symlink_to(python.executable)
    packages = venv / "lib" / f"python{python.tag}"
    packages.mkdir(parents=True)
    (packages / "site-packages").symlink_to(numpy)
    (venv / "pyvenv.cfg").write_text(
        f"home = {python.executable.parent}\ninclude-system-site-packages = false\n", "utf-8"
    )

    merged = {
        key: value
        for key, value in os.environ.items()
        if key != "VIRTUAL_ENV" and not key.startswith("PYTHON")
    }
    merged.update(environment)
    libraries = root.parent.parent / "nvidia_pytriton.libs"
    merged["PATH"] = _joined(venv / "bin", merged.get("PATH", os.defpath))
    merged["LD_LIBRARY_PATH"] = _joined(
        environment.get("LD_LIBRARY_PATH"), libraries, python.library_directory
    )
    return Runtime(
        executable=root / _EXECUTABLE,
        environment=merged,
        backend_directory=backend.parent,
        dlpack_only=python.dlpack_only,
    )


def _joined(*paths: str | Path | None) -> str:
    return ":".join(str(path) for path in paths if path)


def _merge_backends(extra: Path, runtime: Runtime, target: Path) -> Path:
    if not extra.is_dir():
        raise ServerNotFound(
            f"backend_directory={extra} is not a directory. It holds one subdirectory per backend,"
            " as NAME/libtriton_NAME.so."
        )
    own = runtime.backend_directory
    if own is None:
        beside = runtime.executable.parent.parent / "backends"
        own = beside if beside.is_dir() else _CONTAINER_BACKENDS
    target.mkdir(parents=True)
    for directory in (extra, own):
        for backend in directory.iterdir() if directory.is_dir() else ():
            if backend.is_dir() and not (target / backend.name).exists():
                (target / backend.name).symlink_to(backend.resolve())
    return target
