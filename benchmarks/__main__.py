"""``python -m benchmarks [names ...] [options]``; ``--help`` tells them."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from triton_zerocopy.testing import TritonServer

from . import backends, burst, document, picture, report, workloads
from .processes import Conditions
from .rows import ROWS, measure_row

_ROUNDS = 31
_BURST_SHARE = 10  # a burst takes seconds, so there are fewer
_NAMES = [*[row.name for row in ROWS], burst.NAME]


def main() -> None:
    """Measure what was asked for, and write it where it was asked for."""
    options = _options()
    if options.plot is not None:
        picture.check()
    found = _found(options) if options.read is None else _read(options.read)
    if options.json is not None:
        options.json.write_text(f"{json.dumps(found, indent=1)}\n", "utf-8")
    if options.plot is not None:
        picture.draw(options.plot, found)
    if options.docs is not None:
        document.write_section(options.docs, found, options.plot)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def _found(options: argparse.Namespace) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="triton_zerocopy_benchmarks-") as directory:
        backends.build(Path(directory))
        # A server has one HTTP endpoint.
        socket = f"unix:{directory}/http"
        with (
            TritonServer(models=workloads.models(), backend_directory=directory) as server,
            TritonServer(
                models=workloads.models(),
                backend_directory=directory,
                args=[f"--http-address={socket}"],
            ),
        ):
            conditions = Conditions(
                server.grpc_url,
                uses_uvloop=options.uvloop,
                keeps_memory=options.keep_memory,
                http_url=server.http_url,
                unix_url=socket,
            )
            facts = report.environment(server.version, conditions)
            report.print_environment(facts)
            _measure(conditions, options, results)
    return {"environment": facts, "results": results}


def _measure(
    conditions: Conditions, options: argparse.Namespace, results: list[dict[str, Any]]
) -> None:
    for row in ROWS:
        if not _is_wanted(row.name, options.names):
            continue
        if len(row.present) < 2:
            needs = {contender.needs for contender in row.contenders if contender.needs}
            print(f"\n{row.name}: left out, it needs: {', '.join(needs)}")
            continue
        samples = measure_row(row, options.rounds, conditions)
        report.print_row(row, samples, uses_uvloop=options.uvloop)
        results.append(report.row_facts(row, samples, uses_uvloop=options.uvloop))
        sys.stdout.flush()
    if _is_wanted(burst.NAME, options.names):
        rounds = max(1, options.rounds // _BURST_SHARE)
        bursts = burst.measure(conditions, rounds)
        report.print_bursts(bursts)
        results.append(report.burst_facts(bursts))


def _is_wanted(name: str, wanted: list[str]) -> bool:
    return not wanted or any(name == each or name.startswith(f"{each}-") for each in wanted)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure this library and its peers side by side.",
        epilog=f"Names: {', '.join(_NAMES)}. A name also stands for those that begin with it.",
    )
    parser.add_argument("names", nargs="*", help="what to measure; all by default")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="turns (default %(default)s)")
    parser.add_argument("--uvloop", action="store_true", help="use uvloop's event loop")
    parser.add_argument(
        "--keep-memory", action="store_true", help="have the allocator keep what was freed"
    )
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="write all numbers there")
    add("--plot", type=Path, metavar="FILE", help="draw the medians, as .svg or .png")
    add("--docs", type=Path, metavar="FILE", help="put the results into this page's section")
    add(
        "--from",
        dest="read",
        type=Path,
        metavar="FILE",
        help="measure nothing: take what --json wrote, for --plot and --docs",
    )
    options = parser.parse_args()
    for name in options.names:
        if not any(_is_wanted(each, [name]) for each in _NAMES):
            parser.error(f"unknown name {name!r}; there are {', '.join(_NAMES)}")
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    return options


if __name__ == "__main__":
    main()
