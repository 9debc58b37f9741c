"""The results, drawn with matplotlib, which is not needed otherwise."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .failures import BenchError
from .plan import kind_of
from .results import Result
from .table import size


def check_plotting() -> None:
    """See that it is there, before anything is measured.

    Raises:
        BenchError: it is not.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchError(
            '--plot needs matplotlib, which is not here: pip install "triton-zerocopy[bench]"'
        )


def draw(path: Path, title: str, results: Sequence[Result]) -> None:
    """Draw latency and throughput over size, or over concurrency if there is one size.

    Raises:
        BenchError: the file cannot be written.
    """
    # Not pyplot: it would look for a display, and keep every figure.
    from matplotlib.figure import Figure

    is_over_size = len({result.input_bytes for result in results}) > 1
    figure: Any = Figure(figsize=(10, 4.5), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    latency, throughput = figure.subplots(1, 2)
    for label, line in _lines(results, is_over_size=is_over_size).items():
        x = [r.input_bytes if is_over_size else r.cell.callers for r in line]
        median = [r.timing.median * 1e3 for r in line]
        (drawn,) = latency.plot(x, median, marker="o", label=label)
        latency.fill_between(
            x, median, [r.timing.p99 * 1e3 for r in line], color=drawn.get_color(), alpha=0.15
        )
        throughput.plot(x, [r.timing.per_second for r in line], marker="o", label=label)
    ticks = sorted({r.input_bytes if is_over_size else r.cell.callers for r in results})
    for axes, name in (
        (latency, "milliseconds: median, shaded to p99"),
        (throughput, "calls per second"),
    ):
        axes.set(xscale="log", yscale="log", ylabel=name)
        axes.set_xlabel("bytes in" if is_over_size else "callers at a time")
        axes.set_xticks(ticks, [size(tick) if is_over_size else str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(visible=True, alpha=0.3)
    latency.legend(fontsize="small")
    try:
        figure.savefig(path)
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}") from error


def _lines(results: Sequence[Result], *, is_over_size: bool) -> dict[str, list[Result]]:
    """Return the results of each line, in the order of the other axis."""
    has_many = len({result.cell.callers for result in results}) > 1
    lines: dict[str, list[Result]] = {}
    for result in results:
        cell = result.cell
        label = f"{kind_of(cell.memory)}, {cell.way}"
        if is_over_size and has_many:
            label += f", {cell.callers} callers"
        lines.setdefault(label, []).append(result)
    for line in lines.values():
        line.sort(key=lambda r: (r.input_bytes, r.cell.callers))
    return lines
