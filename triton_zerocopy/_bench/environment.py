"""Where it was measured."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any, Final

_PACKAGES: Final = ("triton-zerocopy", "numpy", "grpcio", "protobuf", "tritonclient", "uvloop")


def environment(*, uses_uvloop: bool) -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cpu": _processor(),
        "cores": _cores(),
        "load": _load(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "event_loop": "uvloop" if uses_uvloop else "asyncio",
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def _cores() -> int | None:
    """Return how many this process may use, which in a container is not all."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count()


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
