"""Running measurements in processes of their own, so that none inherits another one's memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import allocator
from .loops import run


@dataclass(frozen=True)
class Conditions:
    """What all measurements of a run have in common.

    Attributes:
        url: of the server, for gRPC.
        uses_uvloop: whether the event loop is uvloop's, else asyncio's.
        keeps_memory: whether the allocator is told to keep freed memory.
        http_url: of the server, for HTTP.
    """

    url: str
    uses_uvloop: bool
    keeps_memory: bool
    http_url: str = ""


def measure_apart(module: str, arguments: Sequence[str], conditions: Conditions) -> Any:
    """Run a module as a program and return what it reported."""
    common = [conditions.url, str(int(conditions.uses_uvloop)), str(int(conditions.keeps_memory))]
    command = [sys.executable, "-m", module, *common, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{module} {' '.join(arguments)} failed; what it wrote is above")
    return json.loads(done.stdout)


def report(measure: Any) -> None:
    """In such a process: measure, and report to the one that started it.

    Args:
        measure: coroutine function of the server's url and the arguments.
    """
    url, uses_uvloop, keeps_memory, *arguments = sys.argv[1:]
    if int(keeps_memory) and not allocator.keep_freed_memory():
        sys.exit("this C library's allocator cannot be told to keep memory")
    print(json.dumps(run(measure(url, *arguments), uses_uvloop=bool(int(uses_uvloop)))))
