"""Putting the emulation in the place of cuda-python, whether or not that is installed."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from . import driver, runtime
from ._machine import machine

_replaced: dict[str, ModuleType] | None = None


def install(version: int = 13) -> None:
    """Let `cuda.bindings.runtime` and `cuda.bindings.driver` be the emulation's.

    Args:
        version: major version of cuda-python. An IPC handle has `reserved` in 12 (in fact up to
            13.3), and not in 13.
    """
    global _replaced  # noqa: PLW0603 # as sys.modules is global
    machine.runtime_version = machine.driver_version = {12: 12060, 13: 13040}[version]
    if _replaced is None:
        _replaced = _take_out()
    package, bindings = _package("cuda"), _package("cuda.bindings")
    bindings.__version__ = {12: "12.6.2", 13: "13.4.4"}[version]
    bindings.runtime, bindings.driver = runtime, driver
    package.bindings = bindings
    sys.modules.update(
        {
            "cuda": package,
            "cuda.bindings": bindings,
            "cuda.bindings.runtime": runtime,
            "cuda.bindings.driver": driver,
        }
    )


def uninstall() -> None:
    """Put back what was there before `install`."""
    global _replaced  # noqa: PLW0603
    if _replaced is None:
        return
    _take_out()
    sys.modules.update(_replaced)
    _replaced = None


def hide() -> None:
    """Let importing anything of `cuda` fail, as where cuda-python is not installed."""
    global _replaced  # noqa: PLW0603
    if _replaced is None:
        _replaced = _take_out()
    _take_out()
    sys.modules["cuda"] = None  # the import system's way to say no


def _take_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] == "cuda"]
    return {name: sys.modules.pop(name) for name in names}


def _package(name: str) -> ModuleType:
    package = ModuleType(name)
    package.__path__ = []  # with nothing in it that could be found on disk
    package.__spec__ = ModuleSpec(name, None, is_package=True)
    return package
