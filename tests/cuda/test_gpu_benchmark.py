"""The benchmarks for a GPU run from end to end on the emulated one; their numbers mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.emulated
def test_all_rows_are_measured(emulated_library, tmp_path):
    file = tmp_path / "results.json"
    done = run("--emulated", "--quick", "--json", str(file))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["mode"] == "emulated,quick"
    assert found["environment"]["GPU"] == "Emulated GPU"
    results = {each["name"]: each for each in found["results"]}
    assert list(results) == ["in-place", "device", "numpy", "upload", "download", "stall"]
    assert {name: len(each.get("goals", [])) for name, each in results.items()} == {
        "in-place": 2,
        "device": 2,
        "numpy": 1,
        "upload": 1,
        "download": 1,
        "stall": 0,
    }
    assert all(min(each["seconds"]) > 0 for row in results.values() for each in row["contenders"])


@pytest.mark.emulated
def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = run()
    assert done.returncode == 0, done.stderr
    assert "nothing is measured, it needs a GPU" in done.stdout
    assert run("nonsense").returncode == 2
