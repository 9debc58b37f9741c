"""Gathers what the tests in this directory need on a machine with a GPU and without a network.

``python wheelhouse.py DIRECTORY`` fills the directory with wheels, the project's
own among them, and with ``server.tar.xz``: a cache of triton_zerocopy.testing that holds the
server with one stub of its python backend, the numpy for that, and the interpreter it embeds.
``unpack`` is for the other machine. `nox -s gpu_wheelhouse` and `nox -s gpu` call both.
"""

from __future__ import annotations

import argparse
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVER = "server.tar.xz"
PYTHON = "python"
MOST = 64 << 20
"""Bytes that this is meant to stay below, to be easy to carry."""

# Executables shrink more if the addresses in their jumps are made absolute first.
_FILTERS = [
    {"id": lzma.FILTER_X86},
    {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 64 << 20},
]
_UNUSED = ("test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3")
_UNUSED += ("__pycache__", "site-packages", "pydoc_data", "config-*", "_test*", "_ctypes_test*")
_LAUNCHER = """#!/bin/sh
# The library of an interpreter that was moved is found by this alone.
here=$(dirname "$(readlink -f "$0")")
export LD_LIBRARY_PATH="$here/../lib${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
exec "$here/{name}.moved" "$@"
"""


def main() -> None:
    options = _options()
    directory: Path = options.directory
    directory.mkdir(parents=True, exist_ok=True)
    gather_wheels(directory, options.needs)
    for name in options.without:
        for wheel in directory.glob(f"{name.replace('-', '_')}-*.whl"):
            wheel.unlink()
    for wheel in directory.glob("*.whl"):
        squeeze(wheel)
    pack_server(directory / SERVER)
    size = sum(file.stat().st_size for file in directory.iterdir())
    say(f"{directory} has {size / 2**20:.1f} MiB; left out: {', '.join(options.without)}")
    if size > MOST:
        sys.exit(f"that is more than {MOST >> 20} MiB; leave out what the other machine has")


def gather_wheels(directory: Path, requirements: list[str]) -> None:
    """Build the project's wheel and download what it and the tests need."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    for old in directory.glob("*.whl"):
        old.unlink()
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", directory, ROOT], check=True)
    own = list(directory.glob("*.whl"))
    command = [*pip, "download", "-q", "--only-binary=:all:", "-d", directory]
    subprocess.run([*command, *own, *requirements], check=True)


def squeeze(wheel: Path) -> None:
    """Compress a wheel anew; pip reads that, too."""
    small = wheel.with_suffix(".small")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(small, "w", zipfile.ZIP_LZMA) as new:
        for entry in old.infolist():
            new.writestr(entry, old.read(entry), zipfile.ZIP_LZMA)
    small.replace(wheel)


def pack_server(archive: Path) -> None:
    """Write the archive of the server, its numpy and its interpreter."""
    from triton_zerocopy.testing._interpreter import find_interpreter
    from triton_zerocopy.testing._provision import provision_numpy, provision_server

    python = find_interpreter()
    say(f"packing the server with Python {python.tag}; that takes a minute or two")
    server = provision_server(threading.Event())
    numpy = provision_numpy(python, threading.Event())

    def is_wanted(name: str) -> bool:
        path = Path(name)
        if "python_backend_stubs" in path.parts:
            return path.name == "python_backend_stubs" or python.tag in path.parts
        # Only the stub for 3.13 has a libpython with it.
        if path.name.startswith("libpython3"):
            return python.tag == "3.13"
        return not {"caches", "tests", "__pycache__"} & set(path.parts)

    def pick(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return entry if is_wanted(entry.name) else None

    with (
        tempfile.TemporaryDirectory() as scratch,
        lzma.open(archive, "wb", filters=_FILTERS) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for part in ("nvidia_pytriton.libs", "pytriton/tritonserver"):
            tar.add(server / part, f"{server.name}/{part}", filter=pick)
        tar.add(numpy, numpy.name, filter=pick)
        moved = Path(scratch, PYTHON)
        move_interpreter(python.executable, python.library_directory, moved)
        tar.add(moved, PYTHON)


def move_interpreter(executable: Path, libraries: Path, target: Path) -> None:
    """Copy an interpreter with its library, stripped, and start it by a script that finds that."""
    name = executable.name
    standard = Path(subprocess.check_output([executable, "-c", _WHERE], text=True).strip())
    shutil.copytree(
        standard, target / "lib" / standard.name, ignore=shutil.ignore_patterns(*_UNUSED)
    )
    for library in libraries.glob(f"lib{name}.so*"):
        shutil.copy(library, target / "lib")
    (target / "bin").mkdir()
    shutil.copy(executable, target / "bin" / f"{name}.moved")
    launcher = target / "bin" / name
    launcher.write_text(_LAUNCHER.format(name=name))
    launcher.chmod(0o755)
    if strip := shutil.which("strip"):
        binaries = [str(path) for path in target.rglob("*.so*") if path.is_file()]
        subprocess.run([strip, "--strip-unneeded", *binaries], check=False)


_WHERE = "import os; print(os.path.dirname(os.__file__))"


def unpack(wheelhouse: Path, cache: Path) -> dict[str, str]:
    """Unpack the archive of the server, and return the variables that have it used."""
    if not (cache / PYTHON).is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tarfile.open(wheelhouse / SERVER) as tar:
            tar.extractall(cache, filter="tar")
    (interpreter,) = cache.glob(f"{PYTHON}/bin/python3.*[0-9]")
    return {
        "TRITON_ZEROCOPY_CACHE": str(cache),
        "TRITON_ZEROCOPY_SERVER_PYTHON": str(interpreter),
    }


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 # it is a program


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox -s gpu_wheelhouse --", description=__doc__)
    parser.add_argument("directory", type=Path, help="what is filled")
    parser.add_argument(
        "--without",
        nargs="+",
        default=["numpy"],  # who has torch, CuPy or JAX has it
        metavar="NAME",
        help="packages that the other machine has; numpy by default",
    )
    parser.add_argument(
        "--needs", nargs="*", default=[], metavar="REQUIREMENT", help="what else is put in"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
