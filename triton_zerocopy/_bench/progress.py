"""What is going on, on stderr: a line that changes on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from typing import Final, TextIO

_PATIENCE: Final = 10.0  # seconds between two lines of one measurement, off a terminal


class Progress:
    """Tells how far the benchmark is."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._total = total
        self._done = 0
        self._what = ""
        self._last = 0.0

    def start(self, what: str) -> None:
        """Tell that a measurement begins."""
        self._done += 1
        self._what = f"[{self._done}/{self._total}] {what}"
        self._last = time.monotonic()
        self._write("warming up")

    def tell(self, calls: int, seconds: float) -> None:
        """Tell how far it is."""
        now = time.monotonic()
        if self._is_terminal or now - self._last > _PATIENCE:
            self._last = now
            self._write(f"{calls} calls in {seconds:.1f} s")

    def clear(self) -> None:
        """Make room on the terminal for something else."""
        if self._is_terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _write(self, text: str) -> None:
        line = f"{self._what}: {text}"
        self._stream.write(f"\r\x1b[K{line}" if self._is_terminal else f"{line}\n")
        self._stream.flush()
