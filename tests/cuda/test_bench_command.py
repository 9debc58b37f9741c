"""`triton-zerocopy bench --shared-memory cuda`, from end to end; its figures mean nothing here."""

from __future__ import annotations

import json

import pytest

from triton_zerocopy.__main__ import main

pytestmark = pytest.mark.once


def test_it_measures_on_a_gpu(gpu_server, tmp_path, capsys):
    file = tmp_path / "results.json"
    status = main(
        [
            *("bench", "-u", gpu_server.grpc_url, "-m", "add_one", "--sizes", "64,200KB"),
            *("--shared-memory", "cuda", "--way", "infer,lease", "--concurrency", "2"),
            *("--calls", "3", "--warm-up", "0", "--json", str(file)),
        ]
    )
    said = capsys.readouterr()
    assert status == 0, said.err
    assert "pinned memory" in said.out
    results = json.loads(file.read_text())["results"]
    assert {each["shared_memory"] for each in results} == {"cuda:0"}
    copied = [
        (each["copied_per_call"]["input_bytes"], each["copied_per_call"]["output_bytes"])
        for each in results
    ]
    # A large array goes through pinned memory, so it is copied twice.
    assert copied == [(64, 64), (0, 0), (400_000, 200_000), (0, 0)]
