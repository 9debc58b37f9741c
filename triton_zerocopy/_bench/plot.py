"""The results, drawn with matplotlib, which is not needed otherwise."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import cycle
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
    ways = list(dict.fromkeys(_way(result) for result in results))
    counts = sorted({result.cell.callers for result in results})
    # Colours tell the ways apart, strokes the numbers of callers.
    styles = dict(zip(counts, cycle(("-", "--", ":", "-.")), strict=False))
    for (way, callers), line in _lines(results, is_over_size=is_over_size).items():
        label, color = way, f"C{ways.index(way)}"
        if len(styles) > 1 and callers:
            label += f", {callers} callers"
        x = [r.input_bytes if is_over_size else r.cell.callers for r in line]
        median = [r.timing.median * 1e3 for r in line]
        look = {
            "label": label,
            "color": color,
            "linestyle": styles.get(callers, "-"),
            "marker": ".",
        }
        latency.plot(x, median, **look)
        p99 = [r.timing.p99 * 1e3 for r in line]
        latency.fill_between(x, median, p99, color=color, alpha=0.08, linewidth=0)
        throughput.plot(x, [r.timing.per_second for r in line], **look)
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


def _way(result: Result) -> str:
    return f"{kind_of(result.cell.memory)}, {result.cell.way}"


def _lines(results: Sequence[Result], *, is_over_size: bool) -> dict[tuple[str, int], list[Result]]:
    """Return the results of each line, in the order of the other axis."""
    lines: dict[tuple[str, int], list[Result]] = {}
    for result in results:
        callers = result.cell.callers if is_over_size else 0
        lines.setdefault((_way(result), callers), []).append(result)
    for line in lines.values():
        line.sort(key=lambda r: (r.input_bytes, r.cell.callers))
    return lines
