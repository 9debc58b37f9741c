"""The short form of `nox -s soak`, and that it would tell."""

from __future__ import annotations

import pytest
import soak

pytestmark = pytest.mark.anyio


async def test_some_seconds_of_everything(unruly, proxy):
    work = soak.Soak(unruly, proxy, seed=3, every=1.5)
    report = await work.run(calls=1_000_000, seconds=5, callers=24)
    assert not report.broken(), report.table()
    assert report.restarts
    assert report.cuts


def test_the_report_tells_what_is_broken():
    report = soak.Report(sizes=[50.0, 50.0, 50.0])
    report.ends["ok"] = 5
    assert report.broken() == []
    report.wrong, report.lost_slots, report.sizes[2] = ["this"], 1, 500.0
    assert report.broken() == [
        "every result is its own call's",
        "no slot is lost",
        "memory does not grow",
    ]
    assert "WRONG RESULTS" in report.table()
