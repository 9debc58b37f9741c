"""Compiling the server's half of the emulation, when tests start."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

from triton_zerocopy.testing._provision import provision_server
from triton_zerocopy.testing._runtime import is_provisioned_by_us

_SOURCES = Path(__file__).with_name("preload")
_COMPILERS = ("gcc", "cc", "clang")
_FLAGS = ("-std=gnu11", "-O2", "-g", "-fPIC", "-shared", "-pthread", "-Wall", "-Wextra")


class CannotBuild(Exception):
    """There is no compiler, or no server whose CUDA could be replaced; the text says which."""


def find_compiler() -> str:
    """Return the C compiler to use.

    Raises:
        CannotBuild: there is none.
    """
    for name in _COMPILERS:
        if path := shutil.which(name):
            return path
    raise CannotBuild(f"the emulated CUDA is compiled, and there is none of {_COMPILERS}")


def server_libraries() -> Path:
    """Return the directory with the server's own libcudart, fetching the server if need be.

    Raises:
        CannotBuild: the server is not the provisioned one.
    """
    if not is_provisioned_by_us():
        raise CannotBuild("the emulated CUDA is made for the server that is provisioned")
    return provision_server(threading.Event()) / "nvidia_pytriton.libs"


def build(directory: Path, server_libs: Path) -> Path:
    """Compile the library that a server loads instead of CUDA.

    Args:
        directory: Where it goes; next to it lies a link named as the driver's library.
        server_libs: Directory with the server's libcudart. The server asks for that by its
            file name, so this is the library's name, too: then the other is never loaded.

    Returns:
        The library.

    Raises:
        CannotBuild: there is no compiler, or no libcudart in that directory.
    """
    runtimes = sorted(server_libs.glob("libcudart*.so.*"))
    if not runtimes:
        raise CannotBuild(f"{server_libs} has no libcudart whose place could be taken")
    library = directory / "emucuda.so"
    command = [find_compiler(), *_FLAGS, f"-Wl,-soname,{runtimes[0].name}"]
    command.append(f"-Wl,--version-script={_SOURCES / 'emucuda.map'}")
    command += ["-o", str(library), *map(str, sorted(_SOURCES.glob("*.c"))), "-ldl", "-lrt"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr}"
    (directory / "libcuda.so").symlink_to(library.name)
    return library
