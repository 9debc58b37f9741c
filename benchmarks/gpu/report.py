"""What is printed and written about the measurements on the GPU."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..measuring import Samples
from ..workloads import Workload
from . import stall
from .gpus import Gpu, runtime
from .stall import Stalls

_DRIVER = Path("/proc/driver/nvidia/version")
_PACKAGES = ("cuda-bindings", "torch", "cupy-cuda12x", "cupy-cuda13x")
_DIGITS = re.compile(r"\d+\.\d+(\.\d+)?")


def gpu_facts(gpu: Gpu) -> dict[str, Any]:
    """Describe the GPU and what drives it."""
    properties = runtime().cudaGetDeviceProperties(0)[1]
    version = runtime().cudaDriverGetVersion()[1]
    return {
        "GPU": properties.name.decode().rstrip("\0"),
        "GPU memory": f"{properties.totalGlobalMem / 1e9:.0f} GB",
        "driver": _driver_version(),
        "CUDA": f"{version // 1000}.{version % 1000 // 10}",
        "tensors": gpu.library,
        **{name: version for name in _PACKAGES if (version := _version(name))},
    }


def print_speeds(samples: Sequence[Samples], workload: Workload) -> None:
    """Print how fast tensors of that size were copied."""
    for sample in samples:
        print(f"  {sample.name}: {workload.tensor_bytes / sample.median / 1e9:.2f} GB/s")


def print_stalls(found: Sequence[Stalls], workload: Workload) -> None:
    """Print the table of the stalls."""
    megabytes = workload.tensor_bytes / 1e6
    print(
        f"\n{stall.NAME}: {stall.CALLS} calls of {megabytes:.0f} MB in and out at once, "
        f"{stall.CALLS} slots on the GPU, the server copies once, each in a new process"
    )
    print(f"  {'':48} {'longest stall':>14} {'second time':>12} {'in all':>9}")
    for stalls in found:
        print(
            f"  {stalls.name:48} {stalls.median('stall_ms'):>11.1f} ms "
            f"{stalls.median('warm_stall_ms'):>9.1f} ms {stalls.median('seconds'):>7.2f} s"
        )
    for stalls in found[1:]:
        longest = max(stalls.median("stall_ms"), stalls.median("warm_stall_ms"))
        print(
            f"  {stalls.name}, longest stall = {longest:.1f} ms   goal <= {stall.LIMIT_MS:g} ms: "
            f"{'yes' if longest <= stall.LIMIT_MS else 'NO'}"
        )


def stall_facts(found: Sequence[Stalls]) -> dict[str, Any]:
    """Return what --json writes about the stalls."""
    return {
        "name": stall.NAME,
        "limit_ms": stall.LIMIT_MS,
        "contenders": [vars(stalls) for stalls in found],
    }


def _driver_version() -> str | None:
    try:
        found = _DIGITS.search(_DRIVER.read_text("utf-8", "replace"))
    except OSError:
        return None
    return found[0] if found else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
