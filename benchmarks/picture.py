"""The results as a picture: a group of bars for each row, drawn with matplotlib."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import burst

_OURS, _LIMIT, _PEER = "#2a7f3f", "#9a9a9a", "#4a78b0"
_BAR = 0.24  # inches
_TITLE = 0.75


def check() -> None:
    """Exit if matplotlib is not there, before anything is measured."""
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit("--plot needs matplotlib: pip install matplotlib")


def draw(path: Path, facts: Mapping[str, Any]) -> None:
    """Draw the times of a run, each row on a scale of its own.

    Args:
        path: where; its ending says in which format.
        facts: what ``--json`` writes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    mpl.rcParams["svg.hashsalt"] = "benchmarks"  # the same figures give the same file
    rows = [result for result in facts["results"] if result["name"] != burst.NAME]
    if not rows:
        sys.exit("--plot: nothing was measured that is drawn")
    heights = [len(row["contenders"]) * _BAR + _TITLE for row in rows]
    figure: Any = Figure(figsize=(9, sum(heights) + 0.4), layout="constrained")
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, row in zip(panels, rows, strict=True):
        _draw_row(axes, row)
    environment = facts["environment"]
    figure.supxlabel(
        f"median of a call (its ratio to triton_zerocopy's); {environment['processor']}, "
        f"{environment['cores']} cores, {environment['date']}",
        fontsize="small",
    )
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata)


def _draw_row(axes: Any, row: Mapping[str, Any]) -> None:
    names = [each["name"] for each in row["contenders"]]
    medians = [each["median"] * 1e6 for each in row["contenders"]]
    reference = dict(zip(names, medians, strict=True)).get(row["reference"])
    colors = [
        _OURS if name.startswith("triton_zerocopy") else _LIMIT if _is_limit(name) else _PEER
        for name in names
    ]
    title = row["title"]
    bars = axes.barh(names, medians, color=colors, height=0.75)
    labels = [
        _time(median) if reference is None else f"{_time(median)} ({median / reference:.3g})"
        for median in medians
    ]
    axes.bar_label(bars, labels, padding=3, fontsize="x-small")
    # What differs by orders of magnitude is seen on a logarithmic scale only.
    if max(medians) > 30 * min(medians):
        title += " (logarithmic)"
        axes.set_xscale("log")
        axes.set_xlim(min(medians) / 2, max(medians) * 4)
    else:
        axes.set_xlim(0, max(medians) * 1.25)
    axes.invert_yaxis()
    axes.set_title(title, fontsize="small", loc="left")
    axes.tick_params(labelsize="x-small")
    axes.set_xticks([])
    axes.minorticks_off()
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _is_limit(name: str) -> bool:
    """Tell whether it is no client that anybody could use."""
    return "no copies" in name or "no call" in name


def _time(microseconds: float) -> str:
    if microseconds < 1000:
        return f"{microseconds:.0f} µs"
    return f"{microseconds / 1000:.2f} ms"
