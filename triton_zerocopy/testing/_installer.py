"""Running pip (or uv) so that it can be watched and stopped."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

from ._errors import Aborted, ProvisionError
from ._progress import Progress

_POLL = 0.1  # seconds
_TAIL = 15  # lines of pip's output in an error

# The user's configuration (index, proxy, certificates) is respected. What is dropped would apply
# rules to this separate directory that were meant for the user's own environment: a constraint
# such as numpy==2.1 is right there and wrong here.
_DROPPED = ("PIP_CONSTRAINT", "PIP_USER", "PIP_REQUIRE_VIRTUALENV", "UV_CONSTRAINT", "UV_OVERRIDE")


def install(
    requirement: str,
    *,
    target: Path,
    scratch: Path,
    python: str | None,
    progress: Progress,
    abort: threading.Event,
) -> None:
    """Install one requirement, without what it depends on, into a directory of its own.

    Args:
        requirement: As pip understands it.
        target: The directory to fill.
        scratch: Directory for temporary files, on the same file system.
        python: Version of the interpreter that will use it, as `3.12`; None for any.
        progress: Told about every step.
        abort: When set, the installer is ended.

    Raises:
        ProvisionError: There is no installer, or it failed; the end of its output is included.
    """
    scratch.mkdir(parents=True)
    output = scratch.parent / "installer.log"
    command = _command(requirement, target, python)
    environment = {key: value for key, value in os.environ.items() if key not in _DROPPED}
    environment["TMPDIR"] = str(scratch)
    with output.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 # pip or uv
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        while True:
            progress.update()
            with contextlib.suppress(subprocess.TimeoutExpired):
                returncode = process.wait(_POLL)
                break
            if abort.is_set():
                raise Aborted
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    progress.update(last=True)
    if returncode != 0:
        lines = output.read_text("utf-8", "replace").strip().splitlines()
        tail = "\n".join(f"  {line}" for line in lines[-_TAIL:])
        raise ProvisionError(
            f"Could not install {requirement} (exit status {returncode}):\n{tail}\n"
            f"Command: {' '.join(command)}\n"
            "Check the network, and the package index that pip is configured to use; or name a"
            " tritonserver executable of your own in TRITON_ZEROCOPY_TRITONSERVER."
        )


def _command(requirement: str, target: Path, python: str | None) -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "install", "--no-input", "--no-user"]
        command += ["--disable-pip-version-check", "--root-user-action=ignore", "--no-compile"]
        command += ["--progress-bar=off"]
        if python is not None:
            command += ["--python-version", python, "--implementation", "cp"]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--no-progress", "--python", sys.executable]
        if python is not None:
            command += ["--python-version", python]
    else:
        raise ProvisionError(
            f"Neither pip (for {sys.executable}) nor uv is here to fetch a server. Install one"
            " (python -m ensurepip), or name a tritonserver executable of your own in"
            " TRITON_ZEROCOPY_TRITONSERVER."
        )
    return [*command, "--no-deps", "--only-binary", ":all:", "--target", str(target), requirement]
