"""The results, as they are printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from .copies import Copied, told
from .plan import Cell, kind_of
from .results import Result
from .target import Target

_COLUMNS: Final = (
    ("memory", 7),
    ("way", 6),
    ("in", 8),
    ("out", 8),
    ("callers", 7),
    ("median", 9),
    ("p99", 9),
    ("calls/s", 9),
    ("CPU/call", 9),
    ("stall", 9),
    ("copied", 8),
)


def heading(environment: Mapping[str, Any], target: Target, server: str) -> str:
    """Say what is measured where."""
    whose = "started for this" if target.is_own else "yours"
    version = f"Triton {server}, " if server else ""
    names = ("numpy", "grpcio", "tritonclient", "uvloop")
    versions = {name: environment["versions"].get(name) for name in names}
    if environment["event_loop"] != "uvloop":
        versions.pop("uvloop")
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return (
        f"model {target.model!r} of the server at {target.url} ({version}{whose})\n"
        f"{environment['cpu']}, {environment['cores']} cores, load {environment['load']}; "
        f"Python {environment['python']}, {environment['event_loop']}, {packages}\n\n"
        f"{_line(name for name, _ in _COLUMNS)}"
    )


def row(result: Result) -> str:
    """Return the line of one measurement."""
    cell, timing = result.cell, result.timing
    return _line(
        (
            kind_of(cell.memory),
            cell.way,
            size(result.input_bytes),
            size(result.output_bytes),
            str(cell.callers),
            duration(timing.median),
            duration(timing.p99),
            f"{timing.per_second:.0f}" if timing.per_second >= 10 else f"{timing.per_second:.2f}",
            duration(timing.cpu_per_call),
            duration(timing.stall),
            size(_total(result.copied)),
        )
    )


def legend(cells: Sequence[Cell]) -> str:
    """Say what the columns mean, and what was copied where."""
    ways = dict.fromkeys((cell.memory, cell.way) for cell in cells)
    copied = [f"  {kind_of(memory)} {way}: {told(memory, way)}." for memory, way in ways]
    return "\n".join(
        (
            "",
            "in, out: tensor bytes of a call. CPU/call: processor time of this process, all its",
            "threads, by the calls. stall: the longest time that the event loop was late.",
            "copied: tensor bytes that the library copied for a call:",
            *copied,
        )
    )


def size(count: int) -> str:
    """Return bytes as people read them."""
    if count < 1000:
        return f"{count} B"
    for unit in ("KB", "MB"):
        count_of_unit = count / (1e3 if unit == "KB" else 1e6)
        if count_of_unit < 999.5:
            return f"{count_of_unit:.3g} {unit}"
    return f"{count / 1e9:.3g} GB"


def duration(seconds: float) -> str:
    """Return a time as people read it."""
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def _total(copied: Copied) -> int:
    return copied.input_bytes + copied.output_bytes


def _line(values: Iterable[str]) -> str:
    """Names to the left, numbers to the right."""
    cells = [
        f"{value:<{width}}" if index < 2 else f"{value:>{width}}"
        for index, ((_, width), value) in enumerate(zip(_COLUMNS, values, strict=True))
    ]
    return " ".join(cells)
