"""What becomes of the benchmarks' results: a picture, and a section of the documentation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def contender(name, median):
    return {
        "name": name,
        "median": median,
        "cpu_median": median / 2,
        "spread": 0.125,
        "seconds": [median],
        "cpu_seconds": [median / 2],
    }


def burst(name):
    measures = ("stall_ms", "warm_stall_ms", "rss_growth_mb", "seconds")
    return {"name": name, **{what: [1.0, 3.0, 2.0] for what in measures}}


FACTS = {
    "environment": {
        "date": "2026-01-02",
        "processor": "A processor",
        "cores": 2,
        "load": 0.1,
        "kernel": "6.1",
        "python": "3.12.1",
        "loop": "asyncio",
        "malloc": "as it is",
        "triton": "2.51.0",
        "numpy": "2.5.0",
    },
    "results": [
        {
            "name": "small",
            "title": "64 B in and out",
            "reference": "triton_zerocopy infer",
            "contenders": [contender("peer", 0.0004), contender("triton_zerocopy infer", 0.0002)],
            "goals": [
                {
                    "what": "triton_zerocopy infer / peer",
                    "ratio": 0.5,
                    "sign": "<=",
                    "limit": 1.05,
                    "is_met": True,
                }
            ],
        },
        {
            "name": "burst",
            "expected_mb": 576.0,
            "contenders": [burst("the ticker alone"), burst("triton_zerocopy infer")],
        },
    ],
}


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_results_become_a_section_and_a_picture(tmp_path):
    results, page, picture = (tmp_path / name for name in ("r.json", "page.md", "picture.svg"))
    results.write_text(json.dumps(FACTS))
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    page.write_text(text)
    for _ in range(2):  # the second time, what is replaced is its own
        done = run("--from", results, "--plot", picture, "--docs", page)
        assert done.returncode == 0, done.stderr
    written = page.read_text()
    machine = (
        "A processor, 2 cores, Linux 6.1, Python 3.12.1, asyncio's event loop, Triton 2.51.0, "
        "numpy 2.5.0; 2026-01-02. The load was 0.1 at the start."
    )
    for line in (
        machine,
        "![What a call takes, for each contender](picture.svg)",
        "| peer | 400 µs | 2 | 200 µs | 12% |",
        "| **triton_zerocopy infer** | 200 µs | 1 | 100 µs | 12% |",
        "| triton_zerocopy infer / peer | 0.5 | ≤ 1.05 | yes |",
        "| **triton_zerocopy infer** | 2.0 ms | 2.0 ms | 2 MB | 2.00 s |",
        "The goal is a stall of at most 10 ms: met.",
    ):
        assert line in written.splitlines()
    begin, end = text.index("<!-- results"), text.index("<!-- end of results")
    assert written.startswith(text[:begin])
    assert written.endswith(text[end:])
    drawn = picture.read_text()
    assert "400 µs (2)" in drawn
    assert "2026-01-02" in drawn


def test_a_page_without_the_section_is_left_alone(tmp_path):
    results, page = tmp_path / "r.json", tmp_path / "page.md"
    results.write_text(json.dumps(FACTS))
    page.write_text("# Something else\n")
    done = run("--from", results, "--docs", page)
    assert done.returncode == 1
    assert "has no section" in done.stderr
    assert page.read_text() == "# Something else\n"


def test_unknown_rows_are_refused():
    done = run("nonsense")
    assert done.returncode == 2
    assert "small-32" in done.stderr
