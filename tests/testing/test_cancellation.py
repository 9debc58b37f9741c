"""Cancelling at any moment leaves nothing behind; the autouse guard looks after that."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from triton_zerocopy.testing import PythonModel, TritonServer
from triton_zerocopy.testing._provision import CACHE_VARIABLE
from triton_zerocopy.testing._threads import run_abortable, run_to_end

from .conftest import leftovers


def same(X: Any) -> Any:
    return X


MODEL = PythonModel(same, inputs={"X": ("FP32", [1])}, outputs={"Y": ("FP32", [1])})


async def _until(condition: Any) -> None:
    with anyio.fail_after(20):
        while not condition():  # a state of another process
            await anyio.sleep(0.001)


@pytest.mark.anyio
@pytest.mark.parametrize("moment", ["", "loading: same", "TRITONBACKEND_ModelInstanceInitialize"])
async def test_a_cancelled_scope_ends_the_start(moment: str) -> None:
    """Before the process, while it loads its model, and just before it is ready."""
    before = leftovers()
    server = TritonServer({"same": MODEL})

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.astart)
        await _until(lambda: moment in server.log_text())
        tasks.cancel_scope.cancel()

    assert leftovers() - before == set()
    assert not server.is_running


@pytest.mark.anyio
async def test_a_cancelled_task_ends_the_start() -> None:
    """Cancelled with asyncio alone, once and again while it cleans up."""
    before = leftovers()
    server = TritonServer({"same": MODEL})
    task = asyncio.create_task(server.astart())
    await _until(lambda: "loading: same" in server.log_text())

    task.cancel()
    await anyio.lowlevel.checkpoint()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert leftovers() - before == set()


@pytest.mark.anyio
async def test_a_cancelled_block_stops_the_server_first() -> None:
    """The end of the block is not cut short."""
    async with anyio.create_task_group() as tasks, TritonServer() as server:
        tasks.cancel_scope.cancel()
        await anyio.sleep_forever()
    assert not server.is_running


@pytest.mark.anyio
async def test_a_cancelled_restart_stops_the_server() -> None:
    """For good, rather than leaving it half started."""
    async with TritonServer({"same": MODEL}) as server:
        await server.akill()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.arestart)
            await _until(lambda: server.log_text().count("loading: same") == 2)
            tasks.cancel_scope.cancel()
        assert not server.is_running


@pytest.fixture
def silent_index() -> Iterator[str]:
    """The url of a package index that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/simple"


@pytest.mark.anyio
async def test_a_cancelled_download_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, silent_index: str
) -> None:
    """With the installer's process, and without its files."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_INDEX_URL", silent_index)
    before = leftovers()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(TritonServer().astart)
        await _until(lambda: any("nvidia-pytriton" in each for each in leftovers() - before))
        tasks.cancel_scope.cancel()

    assert os.listdir(tmp_path) == ["tritonserver-2.51.0.lock"]


@pytest.mark.anyio
async def test_success_at_the_moment_of_cancellation_is_undone() -> None:
    """The function did not see the request to give up, so what it did is taken back."""
    events: list[str] = []

    def function(abort: threading.Event) -> None:
        abort.wait()
        events.append("done")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_abortable, function, lambda: events.append("undone"))
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()

    assert events == ["done", "undone"]


@pytest.mark.anyio
async def test_what_must_run_to_its_end_does() -> None:
    """However often it is cancelled; then the cancellation takes effect."""
    release = threading.Event()
    task = asyncio.create_task(run_to_end(lambda: release.wait() and None))
    for _ in range(3):
        await anyio.lowlevel.checkpoint()
        task.cancel()
    await anyio.wait_all_tasks_blocked()
    assert not task.done()

    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.anyio
async def test_errors_of_the_thread_arrive() -> None:
    """From both functions."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run_abortable(fail, lambda: None)
    with pytest.raises(ZeroDivisionError):
        await run_to_end(fail)
