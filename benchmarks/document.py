"""The results in the documentation: a section between two marks, made anew from a run."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import burst
from .report import STALL_LIMIT_MS

BEGIN = "<!-- results: written by `python -m benchmarks --docs` -->"
END = "<!-- end of results -->"

_PACKAGES = ("numpy", "grpcio", "protobuf", "tritonclient", "triton-shm-client")
_OURS = "triton_zerocopy"


def write_section(page: Path, facts: Mapping[str, Any], picture: Path | None) -> None:
    """Put what a run found where the marks are, or exit if they are not there.

    Args:
        page: a Markdown file.
        facts: what ``--json`` writes.
        picture: drawn from the same run, if any.
    """
    text = page.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{page} has no section between the lines {BEGIN!r} and {END!r}")
    section = "\n".join(_section(facts, page, picture))
    page.write_text(f"{before}{BEGIN}\n{section}\n{END}{after}", "utf-8")


def _section(facts: Mapping[str, Any], page: Path, picture: Path | None) -> Iterator[str]:
    yield from ("", _machine(facts["environment"]), "")
    # A picture elsewhere is not a part of the documentation.
    if picture is not None and picture.absolute().is_relative_to(page.absolute().parent):
        path = Path(os.path.relpath(picture.absolute(), page.absolute().parent)).as_posix()
        yield from (f"![What a call takes, for each contender]({path})", "")
    for result in facts["results"]:
        yield from _burst(result) if result["name"] == burst.NAME else _row(result)


def _machine(facts: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {facts[name]}" for name in _PACKAGES if name in facts)
    if facts["loop"] == "uvloop":
        packages += f", uvloop {facts['uvloop']}"
    kept = "" if facts["malloc"] == "as it is" else " The allocator was told to keep memory."
    busy = " Other programs ran on the machine." if facts["load"] > facts["cores"] / 2 else ""
    return (
        f"{facts['processor']}, {facts['cores']} cores, Linux {facts['kernel']}, "
        f"Python {facts['python']}, {facts['loop']}'s event loop, Triton {facts['triton']}, "
        f"{packages}; {facts['date']}. The load was {facts['load']} at the start.{busy}{kept}"
    )


def _row(result: Mapping[str, Any]) -> Iterator[str]:
    title = result["title"]
    yield from (f"**{title[0].upper()}{title[1:]}**", "")
    yield "| | per call | ratio | client CPU | spread |"
    yield "|---|---:|---:|---:|---:|"
    medians = {each["name"]: each["median"] for each in result["contenders"]}
    reference = medians.get(result["reference"])
    for each in result["contenders"]:
        ratio = "" if reference is None else f"{each['median'] / reference:.3g}"
        yield (
            f"| {_bold(each['name'])} | {_time(each['median'])} | {ratio} | "
            f"{_time(each['cpu_median'])} | {each['spread']:.0%} |"
        )
    yield ""
    if result["goals"]:
        yield "| ratio of medians | | goal | met |"
        yield "|---|---:|---:|---|"
        for goal in result["goals"]:
            sign = "≥" if goal["sign"] == ">=" else "≤"
            yield (
                f"| {goal['what']} | {goal['ratio']:.3g} | "
                f"{sign} {goal['limit']:g} | {'yes' if goal['is_met'] else 'no'} |"
            )
        yield ""


def _burst(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"**{burst.CALLS} calls of 12 MB in and out at once, {burst.SLOTS} slots, the server "
    yield from ("copies once**", "")
    yield "| | longest stall | second time | memory | in all |"
    yield "|---|---:|---:|---:|---:|"
    for each in result["contenders"]:
        found = {
            what: statistics.median(each[what])
            for what in ("stall_ms", "warm_stall_ms", "rss_growth_mb", "seconds")
        }
        yield (
            f"| {_bold(each['name'])} | {found['stall_ms']:.1f} ms | "
            f"{found['warm_stall_ms']:.1f} ms | {found['rss_growth_mb']:.0f} MB | "
            f"{found['seconds']:.2f} s |"
        )
    stall = max(found["stall_ms"], found["warm_stall_ms"])
    met = "met" if stall <= STALL_LIMIT_MS else "not met"
    yield from ("", f"The goal is a stall of at most {STALL_LIMIT_MS:g} ms: {met}.", "")


def _bold(name: str) -> str:
    return f"**{name}**" if name.startswith(_OURS) else name


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
