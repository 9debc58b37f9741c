"""Ending all processes of a session and removing what they leave in /dev/shm.

Imported by the process that started the server, and run as a program of its own (`Guard`), which
does the same should that process be killed. So it uses the standard library only, and knows
nothing of its package.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_POLL = 0.005  # seconds
_START_TIME = 19  # index of "starttime" among the fields of /proc/PID/stat after the command
_SESSION = 3


def session_members(session: int) -> list[int]:
    """Return the living processes of a session."""
    members: list[int] = []
    for entry in os.scandir("/proc"):
        fields = _stat(entry.name) if entry.name.isdecimal() else []
        # The dead count as gone, even where nobody reaps orphans, as in many containers.
        if fields and int(fields[_SESSION]) == session and fields[0] not in ("Z", "X"):
            members.append(int(entry.name))
    return members


def kill_session(session: int, *, patience: float) -> list[int]:
    """Kill all processes of a session, and wait for their end.

    Args:
        session: Id of the session.
        patience: Seconds to wait.

    Returns:
        Those that are still there.
    """
    deadline = time.monotonic() + patience
    while members := session_members(session):
        # Again and again: one that was just being forked was not hit by the first signal.
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL)
    return members


def remove_shared_memory(prefix: str) -> None:
    """Remove the files in /dev/shm whose names begin so."""
    for leftover in _SHARED_MEMORY.glob(f"{prefix}*"):
        leftover.unlink(missing_ok=True)


class Guard:
    """A small process that sweeps up after a server whose owner was killed.

    It waits for the end of a pipe that the owner holds open; the kernel closes it whatever
    happens to the owner.
    """

    def __init__(self, session: int, prefix: str, directory: Path) -> None:
        """Start guarding.

        Args:
            session: Id of the server's session.
            prefix: Of the names of its shared memory.
            directory: Its temporary files.
        """
        command = [sys.executable, "-I", "-S", __file__, str(session), prefix, str(directory)]
        self._popen = subprocess.Popen(  # noqa: S603 # this very file
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """End the guard; there is nothing to guard any more."""
        self._popen.kill()
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        self._popen.wait()


def _stat(pid: int | str) -> list[str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return []
    # pid (command) state ppid pgrp session …; the command may contain anything.
    return text.rpartition(")")[2].split()


def _start_time(pid: int) -> str | None:
    fields = _stat(pid)
    return fields[_START_TIME] if fields else None


def _main(session: int, prefix: str, directory: str) -> None:
    known = _start_time(session)
    sys.stdin.buffer.read()
    now = _start_time(session)
    # Had the server ended, and its number been given to another, that would not be ours to kill.
    if now is None or now == known:
        kill_session(session, patience=10.0)
    remove_shared_memory(prefix)
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
