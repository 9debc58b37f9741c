"""What a killed client had in the memory of a GPU is unregistered, although that memory is gone."""

from __future__ import annotations

import os

import emulated_cuda
import numpy as np
import pytest
from owners import Program
from support import until

import triton_zerocopy as tz
from triton_zerocopy import _claims, _owners
from triton_zerocopy._regions.names import owner_file_name

pytestmark = [pytest.mark.anyio, pytest.mark.emulated]

KILLED = """
import emulated_cuda
emulated_cuda.install()
async def main():
    client, model, task = await calling(%s, memory="cuda:0")
    on_gpu = await client.region(4096, memory="cuda:0")
    on_host = await client.region(4096)
    say(owner=owner_of(client))
    await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.fixture
def files(emulation):
    """The emulated memory of a killed process is files; a driver would have taken it back."""
    yield
    emulated_cuda.sweep()


def files_of(owner):
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"tzc-{owner}")]


async def test_the_next_client_unregisters_them(cuda_server, files):
    before = cuda_server.memory.live_ipc()
    async with Program(KILLED % 0.5, cuda_server.grpc_url) as program:
        owner = (await program.hear())["owner"]
        await program.stop()
    assert len(cuda_server.regions()) == 2
    assert cuda_server.memory.live_ipc() == before + 2
    async with tz.Client(cuda_server.grpc_url, memory="cuda:0") as client:
        async with client.model("fixed") as model:
            result = await model.infer({"INPUT0": np.zeros(4, np.float32)})
            assert (await result.numpy("OUTPUT0"))[0] == 1
            del result
        await until(lambda: files_of(owner) == [])
        assert not [name for name in cuda_server.regions() if owner in name]
    assert cuda_server.memory.live_ipc() == before


async def test_a_request_of_a_killed_client_still_runs(cuda_server, files):
    """The server reads and writes that memory until it is done, so it is not let go of before."""
    async with Program(KILLED % 1.2, cuda_server.grpc_url) as program:
        owner = (await program.hear())["owner"]
        await program.stop()
    async with tz.Client(cuda_server.grpc_url) as client:
        first = await client.reap(timeout=0)
        assert (first.owners, first.registrations, first.in_use) == (0, 2, 1)
        assert files_of(owner) == [owner_file_name(owner)]
        second = await client.reap()
        assert (second.owners, second.registrations, second.in_use) == (1, 1, 0)
        assert await client.is_ready()


async def test_without_a_place_for_owner_files(cuda_server, monkeypatch, caplog):
    """Memory of a GPU needs none; what is left of a killed client then stays."""
    for module in (_owners, _claims):
        monkeypatch.setattr(module, "SHM_DIRECTORY", "/no/such/directory")
    async with tz.Client(cuda_server.grpc_url) as client:
        async with client.region(4096, memory="cuda:0") as region:
            await region.write(np.ones(4, np.float32))
        assert "its regions stay registered" in caplog.text
        assert await client.reap() == tz.Reclaimed(0, 0, 0, 0)
