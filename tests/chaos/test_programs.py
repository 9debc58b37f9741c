"""Programs as they run in production, told to end while requests run: uvicorn, gunicorn."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest
from owners import PATIENCE
from support import owner_files

import triton_zerocopy as tz

pytestmark = pytest.mark.anyio

APP = """
import contextlib, os
import numpy as np
import triton_zerocopy as tz
from fastapi import FastAPI

# Made before any fork and any loop, as with `gunicorn --preload`.
{made_early}

@contextlib.asynccontextmanager
async def lifespan(app):
    {made_late}
    async with client, client.model("work", slots=4) as model:
        app.state.model = model
        yield

app = FastAPI(lifespan=lifespan)

@app.get("/{{tag}}/{{seconds}}")
async def call(tag: int, seconds: float):
    x = np.full(16, tag, np.float32)
    x[0] = seconds
    result = await app.state.model.infer({{"INPUT0": x}})
    return {{"value": float(result["OUTPUT0"][1])}}
"""
MAKE = "client = tz.Client(os.environ['TRITON'])"


class Program:
    """A web server in a process of its own, with the application above."""

    def __init__(self, directory, server, *command, made_early=False):
        code = APP.format(
            made_early=MAKE if made_early else "", made_late="pass" if made_early else MAKE
        )
        (directory / "app.py").write_text(code)
        self._directory, self._server = directory, server
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._command = [part.replace("PORT", str(self.port)) for part in command]

    async def __aenter__(self):
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *self._command,
            cwd=self._directory,
            env={**os.environ, "TRITON": self._server.grpc_url, "PYTHONPATH": str(self._directory)},
            start_new_session=True,
        )
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE)
        async with asyncio.timeout(PATIENCE):
            while True:
                assert self._process.returncode is None
                try:
                    await self.http.get("/1/0.0")
                    return self
                except httpx.TransportError:
                    await asyncio.sleep(0.02)

    async def __aexit__(self, *exc_info):
        await self.http.aclose()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        await self._process.wait()

    async def under_load(self, seconds=0.05, callers=12):
        """Let callers call until they are turned away; return the task, and what went wrong."""
        wrong, answered = [], []

        async def caller(number):
            tag = number * 1000
            while True:
                tag += 1
                try:
                    answer = await self.http.get(f"/{tag}/{seconds}")
                except httpx.TransportError:
                    return
                if answer.status_code == 200:
                    answered.append(tag)
                    if answer.json() != {"value": tag + 1}:
                        wrong.append((tag, answer.text))
                else:
                    wrong.append((tag, answer.text))

        callers = asyncio.gather(*(caller(number) for number in range(1, callers + 1)))
        async with asyncio.timeout(PATIENCE):
            while len(answered) < 20:
                await asyncio.sleep(0.002)
        return callers, wrong

    async def end(self, number=signal.SIGTERM):
        self._process.send_signal(number)
        async with asyncio.timeout(PATIENCE):
            return await self._process.wait()


def files_of(owners):
    """Return what is in /dev/shm of these owners."""
    ids = [name.removesuffix(".owner") for name in owners]
    return [name for name in os.listdir("/dev/shm") if any(each in name for each in ids)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_uvicorn_told_to_end_under_load(unruly, tmp_path, number):
    """It finishes what runs; its lifespan closes the client. The guard sees the server."""
    command = ("uvicorn", "app:app", "--port", "PORT", "--log-level", "warning")
    async with Program(tmp_path, unruly, *command) as program:
        callers, wrong = await program.under_load()
        owners = owner_files(unruly.grpc_url)
        assert len(files_of(owners)) > 1
        await program.end(number)
        await callers
    assert not wrong
    assert not files_of(owners)


async def test_uvicorn_killed_under_load(unruly, tmp_path):
    """What it left the next client reclaims at its start."""
    command = ("uvicorn", "app:app", "--port", "PORT", "--log-level", "warning")
    async with Program(tmp_path, unruly, *command) as program:
        callers, wrong = await program.under_load()
        owners = owner_files(unruly.grpc_url)
        assert owners
        await program.end(signal.SIGKILL)
        await callers
    assert not wrong
    async with tz.Client(unruly.grpc_url) as client, client.model("work"):
        async with asyncio.timeout(PATIENCE):
            while files_of(owners):
                await asyncio.sleep(0.005)


@pytest.mark.parametrize("preload", [False, True])
async def test_gunicorn_with_two_workers(unruly, tmp_path, preload):
    """With --preload the application is imported before the workers are forked."""
    options = ("--preload",) if preload else ()
    command = ("gunicorn", "app:app", "-b", "127.0.0.1:PORT", "-w", "2", "--log-level", "error")
    command += ("-k", "uvicorn_worker.UvicornWorker", *options)
    async with Program(tmp_path, unruly, *command) as program:
        callers, wrong = await program.under_load()
        owners = owner_files(unruly.grpc_url)
        assert 1 <= len(owners) <= 2  # a worker that nobody called has none
        await program.end()
        await callers
    assert not wrong
    assert not files_of(owners)


async def test_a_client_made_before_the_fork_says_so(unruly, tmp_path):
    """Made when --preload imports the application, it is refused in each worker."""
    log = tmp_path / "log"
    command = ("gunicorn", "app:app", "-b", "127.0.0.1:PORT", "-w", "1", "--preload")
    command += ("-k", "uvicorn_worker.UvicornWorker", "--error-logfile", str(log))
    program = Program(tmp_path, unruly, *command, made_early=True)
    with pytest.raises(AssertionError):
        await program.__aenter__()
    await program.http.aclose()
    assert "made in the parent process" in Path(log).read_text()
