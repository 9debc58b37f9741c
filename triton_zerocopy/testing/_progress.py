"""Telling people on stderr why nothing seems to happen."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

_TERMINAL_INTERVAL = 0.5  # seconds
_LOG_INTERVAL = 5.0  # seconds


class Progress:
    """One line that shows elapsed time and megabytes; separate lines where nobody can rewrite."""

    def __init__(self, what: str, directory: Path) -> None:
        self._what = what
        self._directory = directory
        self._began = time.monotonic()
        self._shown = -_LOG_INTERVAL
        self._terminal = sys.stderr.isatty()

    def update(self, *, last: bool = False) -> None:
        """Show the state, if the last time was long enough ago.

        Args:
            last: Show it in any case, and end the line.
        """
        elapsed = time.monotonic() - self._began
        interval = _TERMINAL_INTERVAL if self._terminal else _LOG_INTERVAL
        if not last and elapsed - self._shown < interval:
            return
        self._shown = elapsed
        megabytes = _tree_size(self._directory) / 1e6
        text = f"triton_zerocopy.testing: {self._what}: {elapsed:.0f} s, {megabytes:.0f} MB"
        if self._terminal:
            sys.stderr.write(f"\r{text}\x1b[K" + ("\n" if last else ""))
        else:
            sys.stderr.write(text + ("; done\n" if last else "\n"))
        sys.stderr.flush()


def _tree_size(directory: Path) -> int:
    size = 0
    for root, _, names in os.walk(directory):
        for name in names:
            try:
                size += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue  # pip moves files about while we look
    return size
