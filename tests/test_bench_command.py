"""The command `triton-zerocopy bench`: what it prints and writes, and how it fails.

What it measures is never asserted, only that something plausible was.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time

import pytest
from models import has_strings

from triton_zerocopy.__main__ import main
from triton_zerocopy._bench import plot, runner, table

QUICK = ("--calls", "5", "--warm-up", "0")


@pytest.fixture
def bench(server):
    """Run the command on the test server; returns its status."""

    def run(*arguments, url=server.grpc_url):
        return main(["bench", "-u", url, *QUICK, *arguments])

    return run


def rows(text):
    """The table's lines, as lists of words."""
    lines = text.splitlines()
    (head,) = [index for index, line in enumerate(lines) if line.startswith("memory ")]
    return [line.split() for line in lines[head + 1 : lines.index("", head)]]


def refused(capsys, *arguments):
    """Run it with arguments that cannot be, and return what it says."""
    with pytest.raises(SystemExit) as caught:
        main(["bench", *arguments])
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def test_it_prints_a_table(bench, capsys):
    status = bench("-m", "fixed", "--shared-memory", "none,system", "--way", "infer,lease")
    said = capsys.readouterr()
    assert status == 0
    assert "model 'fixed'" in said.out
    assert "Triton 2." in said.out
    found = rows(said.out)
    assert [row[:2] for row in found] == [
        ["none", "infer"],
        ["system", "infer"],
        ["system", "lease"],
    ]
    assert all(row[2:4] == ["16", "B"] for row in found)
    assert [row[-2:] for row in found] == [["32", "B"], ["32", "B"], ["0", "B"]]
    for told in ("into the message", "into the shared region", "not copied"):
        assert told in said.out
    # Not a terminal: lines, and nothing that moves the cursor.
    assert "[3/3] system lease" in said.err
    assert "\x1b" not in said.err


def test_it_writes_json(bench, server, tmp_path, capsys):
    file = tmp_path / "results.json"
    assert not bench(
        *("-m", "wide_rows", "-b", "2", "--sizes", "4KB,1MiB", "--concurrency", "1,3"),
        *("--json", str(file)),
    )
    found = json.loads(file.read_text())
    assert found["format"] == 1
    assert found["server"] == {
        "url": server.grpc_url,
        "version": server.version,
        "started_for_this": False,
        "model": "wide_rows",
    }
    environment = found["environment"]
    assert {"date", "cpu", "cores", "load", "system", "python"} < environment.keys()
    assert environment["event_loop"] == "asyncio"
    assert {"triton-zerocopy", "numpy", "tritonclient"} <= environment["versions"].keys()
    results = found["results"]
    assert [each["concurrency"] for each in results] == [1, 3, 1, 3]
    assert [each["shapes"]["INPUT0"] for each in results] == [[2, 500]] * 2 + [[2, 131072]] * 2
    for each in results:
        assert each["shared_memory"] == "system"
        assert each["way"] == "infer"
        assert each["calls"] == 5
        latency = each["latency"]
        assert 0 < latency["least"] <= latency["median"] <= latency["p99"] <= latency["most"]
        assert latency["least"] <= latency["mean"] <= latency["most"] <= each["elapsed"]
        assert each["requests_per_second"] == pytest.approx(5 / each["elapsed"])
        assert each["client_cpu_per_call"] > 0
        assert each["longest_loop_stall"] >= 0
        assert each["output_bytes"] == each["input_bytes"] + 8  # and two sums
        copied = each["copied_per_call"]
        assert copied["input_bytes"] == each["input_bytes"]
        assert copied["output_bytes"] == each["output_bytes"]
        assert "shared region" in copied["how"]


def test_shapes_are_those_that_were_given(bench, tmp_path):
    file = tmp_path / "results.json"
    assert not bench("-m", "rows", "--shape", "INPUT0:3,3", "--json", str(file))
    (found,) = json.loads(file.read_text())["results"]
    assert found["shapes"] == {"INPUT0": [3, 3]}
    assert found["input_bytes"] == 36


def test_seconds_limit_it_too(server, capsys):
    started = time.monotonic()
    arguments = ("-m", "fixed", "--seconds", "0.3", "--warm-up", "0.1", "--concurrency", "2")
    assert not main(["bench", "-u", server.grpc_url, *arguments])
    assert time.monotonic() - started > 0.4
    assert len(rows(capsys.readouterr().out)) == 1


@pytest.mark.parametrize("way", ["infer", "lease"])
def test_variable_outputs_and_optional_inputs(bench, way, capsys):
    assert not bench("-m", "count", "--way", way, "--concurrency", "3", "--data", "zeros")
    assert not bench("-m", "runs", "--way", way, "--concurrency", "2")
    assert not bench("-m", "optional", "--way", way)
    assert not bench("-m", "optional", "--way", way, "--shape", "A:4", "--shape", "B:4")


@pytest.mark.skipif(not has_strings(), reason="the server here takes no BYTES")
@pytest.mark.parametrize("way", ["infer", "lease"])
def test_strings(bench, way, capsys):
    assert not bench("-m", "shout", "--way", way, "--shape", "TEXT:3,1")
    assert rows(capsys.readouterr().out)[0][2:6] == ["60", "B", "108", "B"]


def test_all_datatypes(bench):
    shapes = [argument for name in NAMES for argument in ("--shape", f"{name}:2,2")]
    assert not bench("-m", "echo", *shapes)


NAMES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BF16"),
)


def test_uvloop(bench, capsys):
    assert not bench("-m", "fixed", "--uvloop")
    assert "uvloop" in capsys.readouterr().out


# Pictures


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_it_draws(server, tmp_path, kind):
    file = tmp_path / f"picture.{kind}"
    # In a process of its own, for matplotlib does much to the one it is in.
    command = (
        *(sys.executable, "-m", "triton_zerocopy", "bench", "-u", server.grpc_url),
        *(
            "-m",
            "add_one",
            "--sizes",
            "64,4KB",
            "--concurrency",
            "1,2",
            "--shared-memory",
            "none,system",
            *QUICK,
        ),
        *("--plot", str(file)),
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes()[:5] in (b"<?xml", b"\x89PNG\r")
    assert "Traceback" not in done.stderr


def test_without_matplotlib_it_says_what_to_install(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None)
    file = tmp_path / "picture.png"
    assert bench("-m", "fixed", "--plot", str(file)) == 1
    said = capsys.readouterr()
    assert 'pip install "triton-zerocopy[bench]"' in said.err
    assert said.out == "", "nothing is measured for a picture that cannot be drawn"
    assert not file.exists()


# A server of its own


def test_without_a_model_it_starts_a_server(leaves_nothing, capsys):
    status = main(["bench", *QUICK, "--sizes", "1KB"])
    leaves_nothing.accept_children()
    said = capsys.readouterr()
    assert status == 0, said.err
    assert "started for this" in said.out
    assert [row[:2] for row in rows(said.out)] == [
        ["none", "infer"],
        ["system", "infer"],
        ["system", "lease"],
    ]


# What goes wrong


def test_errors_have_a_message_and_no_traceback(bench, capsys):
    def failed(*arguments, **options):
        assert bench(*arguments, **options) == 1
        said = capsys.readouterr()
        assert said.err.startswith("triton-zerocopy bench: ")
        assert "Traceback" not in said.err
        assert said.out == ""
        return said.err

    assert "nonsense" in failed("-m", "nonsense")
    assert "--shape INPUT0:16" in failed("-m", "add_one")
    assert "--sizes" in failed("-m", "add_one")
    assert "it has INPUT0" in failed("-m", "fixed", "--shape", "X:4")
    assert "[4]" in failed("-m", "fixed", "--shape", "INPUT0:5")
    assert "leave --sizes out" in failed("-m", "fixed", "--sizes", "4KB")
    assert "does not batch" in failed("-m", "fixed", "-b", "4")
    assert "decoupled" in failed("-m", "stream", "--shape", "INPUT0:4")
    assert "scheme" in failed("-m", "fixed", url="ftp://localhost:1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert f"127.0.0.1:{port}" in failed("-m", "fixed", url=f"127.0.0.1:{port}")


def test_a_model_that_fails_says_so(bench, capsys):
    assert bench("-m", "fail", "--shape", "INPUT0:4") == 1
    assert "this model never works" in capsys.readouterr().err


def test_without_cuda_it_says_so(server):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "triton_zerocopy", "bench", "-u", server.grpc_url),
            *("-m", "fixed", "--shared-memory", "cuda", *QUICK),
        ],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert told.startswith("triton-zerocopy bench: ")
    assert "cuda" in told.lower()
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_bad_arguments(capsys, tmp_path):
    assert "-m MODEL" in refused(capsys, "-u", "localhost:1")
    assert "-m MODEL" in refused(capsys, "--shape", "A:1")
    assert "twice" in refused(capsys, "-m", "x", "--shape", "A:1", "--shape", "A:2")
    assert "INPUT0:8,3,224,224" in refused(capsys, "-m", "x", "--shape", "8,3")
    lease = ("--way", "lease", "--shared-memory", "none")
    assert "a lease is a place in shared memory" in refused(capsys, "-m", "x", *lease)
    assert "none, system, cuda" in refused(capsys, "--shared-memory", "gpu")
    assert "infer, lease" in refused(capsys, "--way", "stream")
    assert "1.5MB" in refused(capsys, "--sizes", "many")
    assert "at least 1" in refused(capsys, "--concurrency", "0")
    assert "more than 0" in refused(capsys, "--seconds", "0")
    assert "not a finite number" in refused(capsys, "--seconds", "inf")
    assert "not allowed with" in refused(capsys, "--seconds", "1", "--calls", "1")
    assert "no such directory" in refused(capsys, "--json", str(tmp_path / "no" / "file"))
    assert ".png or .svg" in refused(capsys, "--plot", "picture.gif")


# The parts


def test_a_failing_call_ends_all_callers():
    count = 0

    async def call():
        nonlocal count
        count += 1
        await asyncio.sleep(0)
        if count == 3:
            raise ValueError("three")

    async def run():
        with pytest.raises(ValueError, match="three"):
            await runner.measure(call, 2, runner.Limit(60), lambda *_: None)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_the_sampler_sees_a_loop_that_stands_still():
    async def run():
        timing = await runner.measure(stall, 1, runner.Limit(60, calls=1), lambda *_: None)
        assert timing.stall >= 0.04
        assert timing.calls == 1

    async def stall():
        await asyncio.sleep(0.01)
        time.sleep(0.05)  # noqa: ASYNC251 # the sampler cannot run before it ends

    asyncio.run(run())


def test_p99_is_what_99_of_100_calls_kept_to():
    def p99(latencies):
        return runner.Timing(latencies, elapsed=1.0, cpu=1.0, stall=0.0).p99

    assert p99([1.0]) == 1.0
    assert p99([*range(1, 101)]) == 99
    assert p99([*range(1, 201)]) == 198


def test_numbers_are_printed_for_people():
    sizes = [table.size(n) for n in (0, 999, 1000, 999_400, 4_800_000, 10**9)]
    assert sizes == ["0 B", "999 B", "1 KB", "999 KB", "4.8 MB", "1 GB"]
    times = [table.duration(s) for s in (0.00005, 0.000999, 0.0123, 2.5)]
    assert times == ["50 us", "999 us", "12.30 ms", "2.50 s"]


def test_importing_the_library_imports_none_of_it():
    check = (
        "import sys, triton_zerocopy; "
        "sys.exit(any('_bench' in name or 'argparse' == name for name in sys.modules "
        "if name.startswith('triton_zerocopy')))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_console_command_is_there():
    from importlib.metadata import entry_points

    (command,) = entry_points(group="console_scripts", name="triton-zerocopy")
    assert command.load() is main
