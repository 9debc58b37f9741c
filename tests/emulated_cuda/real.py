"""The real cuda-python, asked what it looks like, in a process that sees no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .build import find_compiler

_HERE = Path(__file__).parent
_PROGRAM = """
import json
import _shapes
from cuda.bindings import driver, runtime

print(json.dumps({
    "parameters": _shapes.parameters(runtime, driver),
    "failures": _shapes.failures(runtime),
    "values": _shapes.values(runtime, driver),
    "texts": _shapes.texts(runtime),
    "abilities": _shapes.abilities(runtime, driver),
    "structures": _shapes.types_of_structures(
        runtime.cudaDeviceProp(), runtime.cudaPointerAttributes(), runtime.cudaIpcMemHandle_t()
    ),
    # There were ordinary enums, which allow more; the emulation's are as those of today.
    "has_strict_enums": "not subscriptable" in _shapes.texts(runtime)[-1],
    "has_reserved": hasattr(runtime.cudaIpcMemHandle_t(), "reserved"),
    "version": runtime.cudaRuntimeGetVersion()[1],
}))
"""
_DRIVER_PROGRAM = """
import json
import _shapes
from cuda.bindings import driver

driver.cuInit(0)
print(json.dumps(_shapes.types_of_attributes(driver, 16)))
"""


def is_installed() -> bool:
    """Tell whether there is a cuda-python, be it hidden by the emulation."""
    return any(Path(path, "cuda", "bindings").is_dir() for path in sys.path if path)


def describe() -> dict[str, Any]:
    """Return what the real modules look like."""
    return _run(_PROGRAM, {})


def describe_driver(directory: Path) -> dict[str, str]:
    """Return the types of what its driver functions return, on a driver that is only a stub.

    Args:
        directory: where that is compiled.

    Raises:
        CannotBuild: there is no compiler.
    """
    library = directory / "libcuda.so.1"
    command = [find_compiler(), "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library)]
    subprocess.run([*command, str(_HERE / "driver_stub.c"), "-ldl"], check=True)
    return _run(_DRIVER_PROGRAM, {"LD_LIBRARY_PATH": str(directory), "LD_PRELOAD": str(library)})


def _run(program: str, environment: dict[str, str]) -> Any:
    # Not as part of the package, which would bring the emulation along.
    path = os.pathsep.join(filter(None, [str(_HERE), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
