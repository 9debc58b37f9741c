"""The two backends of the server, built from C when the benchmarks start."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

NULL = "null"
"""Makes the outputs and leaves them as they are, so only the way to the server is measured."""

MEMCPY = "memcpy"
"""Copies each input to its output once."""

_SOURCE = Path(__file__).with_name("backend.c")
_COPIES = {NULL: 0, MEMCPY: 1}


def build(directory: Path) -> None:
    """Build both as ``<name>/libtriton_<name>.so`` below ``directory``, or exit saying why not."""
    compiler = shutil.which("gcc")
    if compiler is None:
        sys.exit(
            "The benchmarks build a small backend for the server and need gcc, which is not here. "
            "Install it, on Debian and Ubuntu with: apt-get install gcc libc6-dev"
        )
    for name, copies in _COPIES.items():
        library = directory / name / f"libtriton_{name}.so"
        library.parent.mkdir()
        command = [compiler, "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", f"-DCOPIES={copies}"]
        done = subprocess.run(
            [*command, "-o", str(library), str(_SOURCE)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"gcc could not build {_SOURCE.name}:\n{done.stderr}")
