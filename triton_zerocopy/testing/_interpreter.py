"""Which Python the server's python backend embeds.

The backend's stub process is a program linked against one libpython. It need not be the
interpreter that runs the tests, so any suitable one on this machine will do.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ._errors import InterpreterNotFound

ENVIRONMENT_VARIABLE = "TRITON_ZEROCOPY_SERVER_PYTHON"

# The stub's numpy conversion needs numpy < 2, which has no wheel for 3.13. There only DLPack works.
_COMPLETE = ((3, 12), (3, 11), (3, 10), (3, 9))
_DLPACK_ONLY = ((3, 13),)
_PROBE_TIMEOUT = 20.0  # seconds

_PROBE = """
import json, platform, sys, sysconfig
print(json.dumps({
    "version": sys.version_info[:2],
    "implementation": sys.implementation.name,
    "base_prefix": sys.base_prefix,
    "library": sysconfig.get_config_var("INSTSONAME") or "",
    "libdir": sysconfig.get_config_var("LIBDIR") or "",
    "multiarch": sysconfig.get_config_var("MULTIARCH") or "",
}))
"""


@dataclass(frozen=True)
class ServerPython:
    """An interpreter that the server can embed.

    Attributes:
        version: Major and minor version.
        executable: The interpreter itself, outside any virtual environment.
        library_directory: Where its libpython lies.
        dlpack_only: Whether tensors can be reached through DLPack only.
    """

    version: tuple[int, int]
    executable: Path
    library_directory: Path
    dlpack_only: bool

    @property
    def tag(self) -> str:
        """The version as in `3.12`."""
        return f"{self.version[0]}.{self.version[1]}"


def find_interpreter(environment: Mapping[str, str] | None = None) -> ServerPython:
    """Find the interpreter for the server's python backend.

    Taken is the one that `TRITON_ZEROCOPY_SERVER_PYTHON` names; else the running one if it is
    3.9 to 3.12; else the newest of these on PATH or among the versions of pyenv and uv; else 3.13,
    on which Python models exchange their tensors through DLPack.

    Args:
        environment: Environment variables; those of this process by default.

    Raises:
        InterpreterNotFound: None is there, or the one that was named does not fit.
    """
    environment = os.environ if environment is None else environment
    named = environment.get(ENVIRONMENT_VARIABLE)
    if named:
        path = shutil.which(named, path=environment.get("PATH")) or named
        found = inspect_interpreter(path)
        if isinstance(found, str):
            raise InterpreterNotFound(f"{ENVIRONMENT_VARIABLE}={named}: {found}")
        return found

    reasons: list[str] = []
    for candidate in _candidates(environment):
        found = inspect_interpreter(candidate)
        if not isinstance(found, str):
            return found
        reasons.append(f"  {candidate}: {found}")
    looked_at = "\n".join(dict.fromkeys(reasons)) or "  no interpreter was found at all"
    raise InterpreterNotFound(
        "The server's python backend embeds a Python 3.9 to 3.13 with a shared libpython, and none"
        f" is here. Looked at:\n{looked_at}\nInstall one (Debian, Ubuntu: apt install"
        f" libpython3.11; or: uv python install 3.12), or name one in {ENVIRONMENT_VARIABLE}."
    )


def inspect_interpreter(executable: str | os.PathLike[str]) -> ServerPython | str:
    """Return what the server needs to know of an interpreter, or why it cannot serve."""
    try:
        result = subprocess.run(  # noqa: S603 # an interpreter of this machine
            [executable, "-I", "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        return "there is no such file"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"it does not run ({error})"
    if result.returncode != 0:
        # For one, a shim of pyenv for a version that is not activated.
        reason = (result.stderr.strip().splitlines() or ["no message"])[0]
        return f"it does not run (exit status {result.returncode}: {reason})"
    try:
        facts = json.loads(result.stdout)
        major, minor = facts["version"]
    except (ValueError, KeyError, TypeError):
        return "it does not behave like a Python interpreter"

    version = (int(major), int(minor))
    tag = f"{major}.{minor}"
    if facts["implementation"] != "cpython" or version not in _COMPLETE + _DLPACK_ONLY:
        return f"the server embeds CPython 3.9 to 3.13, this is {facts['implementation']} {tag}"
    prefix = Path(facts["base_prefix"])
    library = facts["library"] if ".so" in facts["library"] else f"libpython{tag}.so.1.0"
    directory = _library_directory(facts["libdir"], facts["multiarch"], prefix, library)
    if directory is None:
        return (
            f"its shared library {library} is missing; install it (Debian, Ubuntu: apt install"
            f" libpython{tag}) or use a Python built with --enable-shared (pyenv:"
            f" PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install {tag})"
        )
    own = prefix / "bin" / f"python{tag}"
    return ServerPython(
        version=version,
        executable=own if own.exists() else Path(executable),
        library_directory=directory,
        dlpack_only=version in _DLPACK_ONLY,
    )


def _library_directory(libdir: str, multiarch: str, prefix: Path, library: str) -> Path | None:
    places = [
        Path(libdir),
        Path(libdir, multiarch),
        # A relocated build (uv, conda) reports the LIBDIR of the machine that built it.
        prefix / "lib",
        prefix / "lib" / multiarch,
        Path("/usr/lib", multiarch),
    ]
    return next((place for place in places if (place / library).exists()), None)


def _candidates(environment: Mapping[str, str]) -> Iterator[str]:
    running = sys.version_info[:2]
    if running in _COMPLETE:
        yield sys.executable
    for versions in (_COMPLETE, _DLPACK_ONLY):
        if running in versions and running in _DLPACK_ONLY:
            yield sys.executable
        for major, minor in versions:
            name = f"python{major}.{minor}"
            on_path = shutil.which(name, path=environment.get("PATH"))
            if on_path:
                yield on_path
            for root in _version_managers(environment):
                yield from map(str, sorted(root.glob(f"*/bin/{name}"), reverse=True))


def _version_managers(environment: Mapping[str, str]) -> Iterator[Path]:
    home = Path(environment.get("HOME") or Path.home())
    yield Path(environment.get("PYENV_ROOT") or home / ".pyenv", "versions")
    data = Path(environment.get("XDG_DATA_HOME") or home / ".local" / "share")
    yield Path(environment.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
