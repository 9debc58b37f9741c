"""Running measurements in processes of their own, so that none inherits another one's memory."""

from __future__ import annotations

import contextlib
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
        unix_url: of another server that is the same, for HTTP over a Unix socket.
    """

    url: str
    uses_uvloop: bool
    keeps_memory: bool
    http_url: str = ""
    unix_url: str = ""


def measure_apart(module: str, arguments: Sequence[str], conditions: Conditions) -> Any:
    """Run a module as a program and return what it reported."""
    command = _command(module, arguments, conditions)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{module} {' '.join(arguments)} failed; what it wrote is above")
    return json.loads(done.stdout)


class Apart:
    """A module that runs as a program, and answers a line with a line.

    Args:
        module: what is run.
        arguments: for it.
        conditions: of all measurements.
    """

    def __init__(self, module: str, arguments: Sequence[str], conditions: Conditions) -> None:
        self._name = f"{module} {' '.join(arguments)}"
        self._process = subprocess.Popen(
            _command(module, arguments, conditions),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self) -> str:
        """Return the next line that it says, or exit if it has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self._name} failed; what it wrote is above")
        return line.strip()

    def ask(self) -> str:
        """Say a line, and return what it says to that."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.read()

    def end(self) -> None:
        """Let it end, which it does when nothing more can come."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()


def report(measure: Any) -> None:
    """In such a process: measure, and report to the one that started it.

    Args:
        measure: coroutine function of the server's url and the arguments.
    """
    print(json.dumps(in_process(measure)))


def in_process(work: Any) -> Any:
    """In such a process: run a coroutine function under the conditions; return what it returns.

    Args:
        work: coroutine function of the server's url and the arguments.
    """
    url, uses_uvloop, keeps_memory, *arguments = sys.argv[1:]
    if int(keeps_memory) and not allocator.keep_freed_memory():
        sys.exit("this C library's allocator cannot be told to keep memory")
    return run(work(url, *arguments), uses_uvloop=bool(int(uses_uvloop)))


def _command(module: str, arguments: Sequence[str], conditions: Conditions) -> list[str]:
    common = [conditions.url, str(int(conditions.uses_uvloop)), str(int(conditions.keeps_memory))]
    return [sys.executable, "-m", module, *common, *arguments]
