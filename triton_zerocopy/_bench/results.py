"""The results, as they are written for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .callers import Team
from .copies import Copied, told
from .failures import BenchError
from .plan import Cell, kind_of
from .runner import Timing
from .target import Target
from .workload import Workload

FORMAT: Final = 1
"""Goes up when what a reader finds in the file no longer means the same."""


@dataclass(frozen=True, slots=True)
class Result:
    """One measurement with all that belongs to it."""

    cell: Cell
    shapes: Mapping[str, tuple[int, ...]]
    input_bytes: int
    output_bytes: int
    copied: Copied
    timing: Timing


def make_result(cell: Cell, workload: Workload, team: Team, timing: Timing) -> Result:
    """Put together what is kept; the tensors are not."""
    return Result(
        cell,
        {name: tuple(array.shape) for name, array in workload.inputs.items()},
        workload.input_bytes,
        team.output_bytes,
        team.copied,
        timing,
    )


def facts(
    environment: Mapping[str, Any], target: Target, server: str, results: Sequence[Result]
) -> dict[str, Any]:
    """Return all of it as plain values. Times are seconds, sizes are bytes."""
    return {
        "format": FORMAT,
        "environment": dict(environment),
        "server": {
            "url": target.url,
            "version": server,
            "started_for_this": target.is_own,
            "model": target.model,
        },
        "results": [_facts_of(result) for result in results],
    }


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Write them.

    Raises:
        BenchError: the file cannot be written.
    """
    try:
        path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}") from error


def _facts_of(result: Result) -> dict[str, Any]:
    cell, timing = result.cell, result.timing
    return {
        "shared_memory": kind_of(cell.memory),
        "way": cell.way,
        "concurrency": cell.callers,
        "shapes": {name: list(shape) for name, shape in result.shapes.items()},
        "input_bytes": result.input_bytes,
        "output_bytes": result.output_bytes,
        "calls": timing.calls,
        "elapsed": timing.elapsed,
        "latency": {
            "median": timing.median,
            "p99": timing.p99,
            "least": timing.latencies[0],
            "most": timing.latencies[-1],
            "mean": sum(timing.latencies) / timing.calls,
        },
        "requests_per_second": timing.per_second,
        "client_cpu_per_call": timing.cpu_per_call,
        "longest_loop_stall": timing.stall,
        "copied_per_call": {
            "input_bytes": result.copied.input_bytes,
            "output_bytes": result.copied.output_bytes,
            "how": told(cell.memory, cell.way),
        },
    }
