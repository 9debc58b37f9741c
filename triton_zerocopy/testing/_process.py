"""A server process with all that belongs to it: its session and its shared memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ._errors import ServerError
from ._sweep import Guard, kill_session, remove_shared_memory

_POLL = 0.005  # seconds
_KILL_PATIENCE = 10.0  # seconds that the kernel gets to end what was killed


class ServerProcess:
    """A program in a session of its own, ended together with everything it started.

    Attributes:
        pid: Process id, which is also the id of its session.
        log_start: Where in the log file the output of this process begins, in bytes.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        directory: Path,
        shared_memory_prefix: str,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start the program.

        Args:
            command: The program and its arguments.
            environment: All of its environment variables.
            log: File to which its output is appended.
            directory: Its temporary files. They are the owner's to remove, except when the owner
                is killed.
            shared_memory_prefix: Files in /dev/shm with this prefix are its own, and are removed
                when it has ended.
            pass_fds: Descriptors that it inherits.
        """
        self._prefix = shared_memory_prefix
        self._is_gone = False
        with log.open("ab") as output:
            self.log_start = output.tell()
            # A session of its own: Ctrl-C in the terminal is for the tests, which then stop it.
            self._popen = subprocess.Popen(  # noqa: S603 # the caller names the program
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
                pass_fds=pass_fds,
            )
        self.pid = self._popen.pid
        self._guard: Guard | None = None
        try:
            self._guard = Guard(self.pid, shared_memory_prefix, directory)
        except BaseException:
            self.stop(patience=0)
            raise

    def has_ended(self) -> bool:
        """Tell whether the process itself has ended; others of its session may still live."""
        if self._popen.returncode is not None:
            return True
        # Without reaping it: as long as it is not reaped, its number means nothing else.
        flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
        try:
            return os.waitid(os.P_PID, self.pid, flags) is not None
        except ChildProcessError:  # somebody else's wait(-1) reaped it
            self._popen.poll()
            return True

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, if it still runs."""
        if not self.has_ended():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop(self, *, patience: float) -> int:
        """End the process and everything it started, and remove its shared memory.

        Args:
            patience: Seconds that it gets to end by itself after SIGTERM; 0 kills it at once.

        Returns:
            The exit status of the process, negative for the signal that ended it.

        Raises:
            ServerError: Something of it survived SIGKILL.
        """
        if self._is_gone:
            return self._popen.wait()
        deadline = time.monotonic() + patience
        try:
            if patience > 0:
                self.send_signal(signal.SIGTERM)
                # An orderly server ends after the stubs of its python backend. Those of a server
                # that crashed take long to notice, and have nothing left to do.
                while not self.has_ended() and time.monotonic() < deadline:
                    time.sleep(_POLL)
        finally:
            survivors = kill_session(self.pid, patience=_KILL_PATIENCE)
            remove_shared_memory(self._prefix)
            if self._guard is not None:
                self._guard.dismiss()
        if survivors:
            raise ServerError(
                f"Processes {survivors} of the server {self.pid} are still there"
                f" {_KILL_PATIENCE:.0f} s after SIGKILL; they are stuck in the kernel."
            )
        self._is_gone = True
        return self._popen.wait()
