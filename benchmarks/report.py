"""What is printed and written about the measurements."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import burst
from .burst import Bursts
from .measuring import Goal, Row, Samples
from .processes import Conditions

_PACKAGES = ("numpy", "grpcio", "protobuf", "tritonclient", "triton-shm-client", "uvloop")
STALL_LIMIT_MS = 10.0


def environment(server_version: str, conditions: Conditions) -> dict[str, Any]:
    """Describe where the measurements are made."""
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "loop": "uvloop" if conditions.uses_uvloop else "asyncio",
        "malloc": "told to keep memory" if conditions.keeps_memory else "as it is",
        "triton": server_version,
        **{name: version for name in _PACKAGES if (version := _version(name))},
    }


def print_environment(facts: Mapping[str, Any]) -> None:
    """Print it on a line or two."""
    print(", ".join(f"{name} {value}" for name, value in facts.items()))


def print_row(row: Row, samples: Sequence[Samples], *, uses_uvloop: bool = False) -> None:
    """Print the table of a row, and the ratios with their goals."""
    print(f"\n{row.name}: {row.title}")
    print(f"  {'':48} {'per call':>11} {'ratio':>7} {'client CPU':>11} {'spread':>7}")
    reference = reference_of(row, samples)
    for sample in samples:
        times = "" if reference is None else f"{sample.median / reference:.3g}"
        print(
            f"  {sample.name:48} {_time(sample.median):>11} {times:>7} "
            f"{_time(sample.cpu_median):>11} {sample.spread:>7.0%}"
        )
    for contender in row.contenders:
        if contender.needs:
            print(f"  {contender.name}: left out, it needs: {contender.needs}")
    if row.reference:
        print(f"  ratio: by {row.reference}")
    for goal in row.checked_goals:
        ratio, limit = ratio_of(goal, samples), limit_of(goal, uses_uvloop=uses_uvloop)
        print(
            f"  {goal} = {ratio:.3g}"
            f"   goal {_sign(goal)} {limit:g}: {_yes(is_met(goal, ratio, limit))}"
        )


def print_bursts(all_bursts: Sequence[Bursts]) -> None:
    """Print the table of the burst."""
    print(
        f"\n{burst.NAME}: {burst.CALLS} calls of 12 MB in and out at once, {burst.SLOTS} slots, "
        "the server copies once, each in a new process"
    )
    print(f"  {'':36} {'longest stall':>14} {'second time':>12} {'memory':>10} {'in all':>9}")
    for bursts in all_bursts:
        print(
            f"  {bursts.name:36} {bursts.median('stall_ms'):>11.1f} ms "
            f"{bursts.median('warm_stall_ms'):>9.1f} ms "
            f"{bursts.median('rss_growth_mb'):>7.0f} MB {bursts.median('seconds'):>7.2f} s"
        )
    ours = all_bursts[-1]
    stall = max(ours.median("stall_ms"), ours.median("warm_stall_ms"))
    growth = ours.median("rss_growth_mb")
    print(
        f"  {ours.name}, longest stall = {stall:.1f} ms   goal <= {STALL_LIMIT_MS:g} ms: "
        f"{_yes(stall <= STALL_LIMIT_MS)}"
    )
    print(
        f"  {ours.name}, memory / (slots + results held, {burst.EXPECTED_MB:.0f} MB) "
        f"= {growth / burst.EXPECTED_MB:.3g}"
    )


def row_facts(row: Row, samples: Sequence[Samples], *, uses_uvloop: bool = False) -> dict[str, Any]:
    """Return what --json writes about a row."""
    goals = []
    for goal in row.checked_goals:
        ratio, limit = ratio_of(goal, samples), limit_of(goal, uses_uvloop=uses_uvloop)
        goals.append(
            {
                "what": str(goal),
                "ratio": ratio,
                "sign": _sign(goal),
                "limit": limit,
                "is_met": is_met(goal, ratio, limit),
            }
        )
    return {
        "name": row.name,
        "title": row.title,
        "reference": row.reference,
        "contenders": [
            {
                "name": sample.name,
                "median": sample.median,
                "cpu_median": sample.cpu_median,
                "spread": sample.spread,
                "seconds": sample.seconds,
                "cpu_seconds": sample.cpu_seconds,
            }
            for sample in samples
        ],
        "goals": goals,
    }


def burst_facts(all_bursts: Sequence[Bursts]) -> dict[str, Any]:
    """Return what --json writes about the burst."""
    return {
        "name": burst.NAME,
        "expected_mb": burst.EXPECTED_MB,
        "contenders": [vars(bursts) for bursts in all_bursts],
    }


def reference_of(row: Row, samples: Sequence[Samples]) -> float | None:
    """Return the median that all others of a row are divided by, if there is one."""
    return next((sample.median for sample in samples if sample.name == row.reference), None)


def ratio_of(goal: Goal, samples: Sequence[Samples]) -> float:
    """Return the ratio of the medians that a goal is about."""
    medians = {
        sample.name: sample.cpu_median if goal.is_cpu else sample.median for sample in samples
    }
    divisor = medians[goal.divisor] - medians.get(goal.beyond, 0.0)
    return medians[goal.dividend] / divisor if divisor > 0 else math.inf


def limit_of(goal: Goal, *, uses_uvloop: bool) -> float:
    """Return what a ratio is meant to reach on this event loop."""
    return goal.on_uvloop if uses_uvloop and goal.on_uvloop is not None else goal.limit


def is_met(goal: Goal, ratio: float, limit: float) -> bool:
    """Tell whether a ratio is what it is meant to be."""
    return ratio >= limit if goal.is_at_least else ratio <= limit


def _sign(goal: Goal) -> str:
    return ">=" if goal.is_at_least else "<="


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "NO"


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
