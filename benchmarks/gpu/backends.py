"""The two backends for tensors in device memory, built from the source that the others use.

``null`` touches no byte of a tensor and is the same. In ``memcpy`` the copy is CUDA's, see
anywhere.h.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from ..backends import MEMCPY, NULL

_HERE = Path(__file__).parent
_SOURCE = _HERE.parent / "backend.c"
_OPTIONS = {
    NULL: ("-DCOPIES=0",),
    MEMCPY: ("-DCOPIES=1", "-include", str(_HERE / "anywhere.h")),
}


class CannotBuild(Exception):
    """There is no compiler, or it failed; the text says why."""


def build(directory: Path) -> None:
    """Build both as ``<name>/libtriton_<name>.so`` below ``directory``."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise CannotBuild("the benchmarks build a small backend for the server and need gcc")
    for name, options in _OPTIONS.items():
        library = directory / name / f"libtriton_{name}.so"
        library.parent.mkdir()
        command = [compiler, "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", *options]
        command += ["-o", str(library), str(_SOURCE), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotBuild(f"gcc could not build {_SOURCE.name} as {name}:\n{done.stderr}")
