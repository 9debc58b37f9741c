"""``python -m benchmarks.gpu [names ...] [--rounds N] [--emulated] [--quick] [--json FILE]``."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from triton_zerocopy import CudaError
from triton_zerocopy._cuda.cudart import check_available

from .. import report as common
from ..processes import Conditions
from . import backends, report, rows, stall
from .gpus import Gpu, open_gpu
from .modes import Mode
from .workloads import workloads_for

_ROUNDS, _QUICK_ROUNDS = 21, 2
_STALL_SHARE = 5  # one takes seconds, so there are fewer
_NAMES = (*rows.NAMES, stall.NAME)


def main() -> None:
    """Measure what was asked for, or say why that cannot be."""
    options = _options()
    mode = Mode(options.emulated, options.quick)
    mode.prepare()
    try:
        check_available(0)
    except CudaError as error:
        print(f"nothing is measured, it needs a GPU: {error}")
        return
    gpu, work = open_gpu(mode), workloads_for(mode)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="triton_zerocopy_benchmarks-") as name:
        directory = Path(name)
        (directory / "backends").mkdir()
        try:
            backends.build(directory / "backends")
        except backends.CannotBuild as error:
            sys.exit(str(error))
        with mode.server(work.models(), directory) as server:
            conditions = Conditions(
                server.grpc_url, uses_uvloop=options.uvloop, keeps_memory=options.keep_memory
            )
            facts = common.environment(server.version, conditions) | report.gpu_facts(gpu)
            common.print_environment(facts)
            if mode.is_emulated or mode.is_quick:
                print(f"This run is {mode}: it shows that all works, its numbers mean nothing.")
            _measure(conditions, options, mode, gpu, results)
    if options.json is not None:
        text = json.dumps({"environment": facts, "mode": str(mode), "results": results}, indent=1)
        options.json.write_text(f"{text}\n", "utf-8")


def _measure(
    conditions: Conditions,
    options: argparse.Namespace,
    mode: Mode,
    gpu: Gpu,
    results: list[dict[str, Any]],
) -> None:
    wanted = options.names or _NAMES
    work = workloads_for(mode)
    rounds = options.rounds or (_QUICK_ROUNDS if mode.is_quick else _ROUNDS)
    for row in rows.rows_for(gpu, work):
        if row.name not in wanted:
            continue
        samples = rows.measure_row(row, rounds, mode, conditions)
        common.print_row(row, samples)
        if row.name in rows.COPIES:
            report.print_speeds(samples, work.huge)
        results.append(common.row_facts(row, samples))
        sys.stdout.flush()
    if stall.NAME in wanted:
        found = stall.measure(conditions, max(1, rounds // _STALL_SHARE), mode)
        report.print_stalls(found, work.large)
        results.append(report.stall_facts(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Measure this library and its peers side by side on a GPU.",
        epilog=f"Names: {', '.join(_NAMES)}.",
    )
    parser.add_argument("names", nargs="*", help="what to measure; all by default")
    parser.add_argument("--rounds", type=int, help=f"turns (default {_ROUNDS}, with --quick 2)")
    parser.add_argument("--uvloop", action="store_true", help="use uvloop's event loop")
    parser.add_argument(
        "--keep-memory", action="store_true", help="have the allocator keep what was freed"
    )
    parser.add_argument("--emulated", action="store_true", help="on CUDA as the tests emulate it")
    parser.add_argument("--quick", action="store_true", help="small sizes, short turns")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    options = parser.parse_args()
    for name in options.names:
        if name not in _NAMES:
            parser.error(f"unknown name {name!r}; there are {', '.join(_NAMES)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds is at least 1")
    return options


if __name__ == "__main__":
    main()
