"""Where in the user's code something was made, for warnings about what was never closed."""

from __future__ import annotations

import sys


def calling_place() -> str:
    """Return file and line of whoever called the function that calls this."""
    frame = sys._getframe(2)  # noqa: SLF001 # the traceback module reads source files
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
