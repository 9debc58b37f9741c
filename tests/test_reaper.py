"""What dead clients left is given back, and nothing of the living."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

import numpy as np
import pytest
from models import MODELS
from owners import Program
from support import drop_owners, own_files, own_regions, owner_files, until

import triton_zerocopy as tz
from triton_zerocopy import _owners, _reaper
from triton_zerocopy._claims import FORGOTTEN_AFTER, Claim, claim_dead
from triton_zerocopy._owners import Owner, Record
from triton_zerocopy._regions.names import new_name, new_owner_id, owner_file_name
from triton_zerocopy._urls import parse_url, server_key
from triton_zerocopy.testing import TritonServer

pytestmark = pytest.mark.anyio

X = np.arange(4, dtype=np.float32)
SHM = "/dev/shm"


async def registered(client):
    return set((await client.triton.get_system_shared_memory_status()).regions)


def files_of(owner):
    return [name for name in os.listdir(SHM) if name.startswith(f"tzc-{owner}")]


def write(name, content=b"", mode=0o600):
    descriptor = os.open(f"{SHM}/{name}", os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    os.write(descriptor, content)
    os.utime(descriptor, (0, 0))
    os.close(descriptor)
    return f"{SHM}/{name}"


def dead_owner(server, owner=None):
    """Plant the file of a dead owner; return its id."""
    owner = owner or new_owner_id()
    write(owner_file_name(owner), Record(server).pack())
    return owner


async def reaped(client, timeout=30):
    """Owners, registrations, and regions in use. Files are of any server: others leave some, too."""
    found = await client.reap(timeout)
    return found.owners, found.registrations, found.in_use


MANY = """
async def main():
    made = [await calling(0.25) for _ in range(10)]
    for client, model, task in made[::2]:
        await client.region(1 << 16)
    say(owners=[owner_of(client) for client, _, _ in made])
    await asyncio.sleep(60)
asyncio.run(main())
"""
LIVING = """
async def main():
    client, model, task = await calling(0.1)
    await task
    region = await client.region(4096)
    say(owner=owner_of(client))
    await asyncio.to_thread(sys.stdin.readline)
"""


async def test_50_clients_that_were_killed_in_the_middle_of_a_call(server):
    """The next client's start reclaims all of theirs, and nothing of a living neighbour's."""
    async with tz.Client(server.grpc_url) as living, living.model("slow", slots=2) as model:
        await model.infer({"INPUT0": np.zeros(16, np.float32)})
        region = await living.region(4096)
        kept_files, kept = own_files(), await registered(living)
        dead = []
        async with contextlib.AsyncExitStack() as stack:
            programs = [
                await stack.enter_async_context(Program(MANY, server.grpc_url)) for _ in range(5)
            ]
            for program in programs:
                dead += (await program.hear())["owners"]
            for program in programs:
                await program.stop()
        assert len(set(dead)) == 50
        assert all(owner_file_name(owner) in files_of(owner) for owner in dead)
        assert len(await registered(living)) >= 50 + 25

        loop = asyncio.get_running_loop()
        before = loop.time()
        async with tz.Client(server.grpc_url) as client, client.model("fixed", slots=1) as fresh:
            await fresh.infer({"INPUT0": X})
            is_held_up = loop.time() - before > 5
            await until(lambda: not any(files_of(owner) for owner in dead))
        assert not is_held_up, "the caller did not wait for what still executes"
        assert await registered(living) == kept
        assert own_files() == kept_files
        result = await model.infer({"INPUT0": np.zeros(16, np.float32)})
        assert result["OUTPUT0"][0] == 1
        await region.aclose()


async def test_reap_tells_what_it_gave_back(server):
    code = """
    async def main():
        client, model, task = await calling(1.0)
        await client.region(64)
        say(owner=owner_of(client))
        await asyncio.sleep(60)
    asyncio.run(main())
    """
    async with tz.Client(server.grpc_url) as client:
        assert await reaped(client) == (0, 0, 0)
        async with Program(code, server.grpc_url) as program:
            owner = (await program.hear())["owner"]
            assert await reaped(client) == (0, 0, 0), "it is alive"
            await program.stop()
            assert await reaped(client, timeout=0) == (0, 1, 1)
            assert files_of(owner) == [owner_file_name(owner)]
            assert await reaped(client) == (1, 1, 0)
        assert await registered(client) == set()


async def test_two_reapers_at_once(server):
    owners = [dead_owner(server_key(parse_url(server.grpc_url))) for _ in range(20)]
    for owner in owners:
        write(new_name(owner), b"x")
    async with tz.Client(server.grpc_url) as one, tz.Client(server.grpc_url) as two:
        found = await asyncio.gather(one.reap(), two.reap(), one.reap(), two.reap())
    assert sum(each.owners for each in found) == 20
    assert not any(files_of(owner) for owner in owners)


async def test_an_owner_of_another_server(server):
    """Its region files go, its owner file stays for a client of that server; for a day."""
    owner = new_owner_id()
    name = new_name(owner)
    write(name, b"x" * 64)
    path = f"{SHM}/{owner_file_name(owner)}"
    async with tz.Client(server.grpc_url) as client:
        # As if the other server were this one: nothing may be unregistered by its name here.
        await client.triton.register_system_shared_memory(name, f"/{name}", 64)
        dead_owner("somewhere.else:8001", owner)
        assert await reaped(client) == (0, 0, 0)
        assert files_of(owner) == [owner_file_name(owner)]
        assert await registered(client) == {name}
        assert os.path.exists(path)
        assert os.stat(path).st_mtime > time.time() - 60, "found dead now, however old"
        os.utime(path, (0, time.time() - FORGOTTEN_AFTER - 1))
        await client.reap()
        assert files_of(owner) == []
        await client.triton.unregister_system_shared_memory(name)


async def test_a_server_that_does_not_answer(server, leaves_nothing):
    async with TritonServer(models={"fixed": MODELS["fixed"]}) as own:
        owner = dead_owner(server_key(parse_url(own.grpc_url)))
        write(new_name(owner), b"x")
        async with tz.Client(own.grpc_url) as client:
            own.kill()
            with pytest.raises(tz.ServerUnavailable):
                await client.reap()
    assert files_of(owner) == [owner_file_name(owner)], "what is registered is still to be told"
    drop_owners(own.grpc_url)


async def test_regions_without_an_owner_file_are_not_touched(server):
    name = new_name(new_owner_id())
    path = write(name, b"x" * 64)
    async with tz.Client(server.grpc_url) as client:
        await client.triton.register_system_shared_memory(name, f"/{name}", 64)
        assert await reaped(client) == (0, 0, 0)
        assert await registered(client) == {name}
        assert os.path.exists(path)
        await client.triton.unregister_system_shared_memory(name)
    os.unlink(path)


async def test_garbage(server, tmp_path, caplog):
    """What is no owner file is left alone, and nothing hangs."""
    contents = [b"\0" * 100, b"{}", b'{"format": 9}', b"x" * 10_000, b"[" * 3000]
    paths = [write(owner_file_name(new_owner_id()), content) for content in contents]
    link = f"{SHM}/{owner_file_name(new_owner_id())}"
    aim = tmp_path / "aim"
    aim.write_bytes(Record(server_key(parse_url(server.grpc_url))).pack())
    os.symlink(aim, link)
    fifo = f"{SHM}/{owner_file_name(new_owner_id())}"
    os.mkfifo(fifo)
    folder = f"{SHM}/{owner_file_name(new_owner_id())}"
    os.mkdir(folder)
    odd = [write(f"tzc-{'A' * 16}.owner"), write(f"tzc-{'0' * 15}.owner"), write("tzc-.owner")]
    # A forged one claims what another user owns.
    forged = dead_owner(server_key(parse_url(server.grpc_url)))
    foreign = write(new_name(forged), b"x")
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(foreign, 12345, -1)
    try:
        async with tz.Client(server.grpc_url) as client:
            assert await reaped(client) == (1, 0, 0)
        assert all(os.path.lexists(path) for path in (*paths, *odd, link, fifo, folder))
        assert os.path.exists(foreign) == is_root
        assert aim.exists()
        assert _owners._held == set()
    finally:
        for path in (*paths, *odd, link, fifo, foreign):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        os.rmdir(folder)


# Races


async def test_another_server_s_reaper_that_just_looks_at_it(server):
    """Its lock is shared and short: the owner's own server's reaper waits a moment for it."""
    owner = dead_owner(server_key(parse_url(server.grpc_url)))
    looked = []
    claim_dead(looked, "another:1")
    assert owner in {claim.id for claim in looked}
    loop = asyncio.get_running_loop()
    loop.call_later(0.03, lambda: [claim.release() for claim in looked])
    async with tz.Client(server.grpc_url) as client:
        assert await reaped(client) == (1, 0, 0)
    mine, theirs = [], []
    owner = dead_owner(server_key(parse_url(server.grpc_url)))
    claim_dead(mine, server_key(parse_url(server.grpc_url)))
    claim_dead(theirs, "another:1")
    assert owner not in {claim.id for claim in theirs}
    for claim in (*mine, *theirs):
        if claim.id == owner:
            claim.remove()
        claim.release()


def test_an_owner_that_is_just_starting(monkeypatch):
    """Between making and locking its file a reaper takes it for a dead one's: it starts again."""
    real, reaped = _owners.try_lock, []

    def paused(descriptor, *kind):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.endswith(".owner") and len(reaped) < 3:
            claim = claim_of(path)
            reaped.append(claim)
            if len(reaped) == 1:
                return real(descriptor)  # the reaper holds it now
            assert claim.remove()
            claim.release()  # and by now has removed it
        return real(descriptor)

    def claim_of(path):
        descriptor = _owners.hold(path, os.O_RDONLY)
        assert real(descriptor)
        return Claim(path, "0" * 16, descriptor, None)

    with monkeypatch.context() as patch:
        patch.setattr(_owners, "try_lock", paused)
        owner = Owner("nowhere:1")
    assert len(reaped) == 3
    reaped[0].remove()
    reaped[0].release()
    assert own_files() == {owner_file_name(owner.id)}
    owner.release()
    assert own_files() == set()
    assert _owners._held == set()


async def test_reapers_and_starters_at_the_same_time(server):
    """However they meet, an owner that has begun has its file, and it is locked."""
    is_over = asyncio.Event()
    key = server_key(parse_url(server.grpc_url))

    def start():
        lost = 0
        for _ in range(300):
            owner = Owner(key)
            lost += not os.path.exists(f"{SHM}/{owner_file_name(owner.id)}")
            owner.release()
        return lost

    def reap():
        while not is_over.is_set():
            claims = []
            claim_dead(claims, key)
            for claim in claims:
                # Found before its record was written, or none.
                if claim.record is None:
                    claim.remove()
                claim.release()

    reaping = asyncio.gather(*(asyncio.to_thread(reap) for _ in range(2)))
    starting = asyncio.gather(*(asyncio.to_thread(start) for _ in range(2)))
    try:
        assert await starting == [0, 0]
    finally:
        is_over.set()
        await reaping
    assert own_files() == set()
    assert _owners._held == set()


async def test_a_reaper_that_is_stopped_leaves_the_rest_for_the_next(server):
    """By a cancel, and by closing its client: neither waits for what still executes."""
    code = """
    async def main():
        client, model, task = await calling(3.0)
        say(owner=owner_of(client))
        await asyncio.sleep(60)
    asyncio.run(main())
    """
    async with Program(code, server.grpc_url) as program:
        owner = (await program.hear())["owner"]
        await program.stop()
    loop = asyncio.get_running_loop()
    begin = loop.time()
    async with tz.Client(server.grpc_url) as client:
        task = asyncio.create_task(client.reap())
        await until(lambda: files_of(owner) == [owner_file_name(owner)])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert _owners._held == set()
        task = asyncio.create_task(client.reap())
        await until(lambda: _owners._held)
    with pytest.raises(tz.ClientClosed):
        await task
    async with tz.Client(server.grpc_url) as client, client.region(64):
        pass  # its background reaper has just begun
    assert loop.time() - begin < 1.2, "nobody waited for the request to end"
    assert files_of(owner) == [owner_file_name(owner)]
    async with tz.Client(server.grpc_url) as client:
        assert (await client.reap()).owners == 1


async def test_regions_of_a_client_that_used_ensembles_rest(server, monkeypatch):
    monkeypatch.setattr(_reaper, "ENSEMBLE_REST", 0.3)
    code = """
    async def main():
        client = tz.Client(URL)
        model = await client.model("ensemble", slots=1)
        try:
            await model.infer({"INPUT0": tensor(0.5)})
        except tz.InferenceError:
            say(owner=owner_of(client))
        await asyncio.sleep(60)
    asyncio.run(main())
    """
    async with Program(code, server.grpc_url) as program:
        owner = (await program.hear())["owner"]
        await program.stop()
    with open(f"{SHM}/{owner_file_name(owner)}", "rb") as file:
        assert Record.parse(file.read()).rests
    loop = asyncio.get_running_loop()
    async with tz.Client(server.grpc_url) as client:
        begin = loop.time()
        await asyncio.sleep(0.3)  # the server may crash if that is unregistered at once
        assert (await client.reap()).registrations == 1
        assert loop.time() - begin > 0.6
        assert await client.is_ready()


async def test_the_server_was_restarted_meanwhile(leaves_nothing):
    """It knows nothing of the dead client any more, whose file goes all the same."""
    async with TritonServer(models={"slow": MODELS["slow"], "fixed": MODELS["fixed"]}) as own:
        code = """
        async def main():
            client, model, task = await calling(30)
            say(owner=owner_of(client))
            await asyncio.sleep(60)
        asyncio.run(main())
        """
        async with Program(code, own.grpc_url) as program:
            owner = (await program.hear())["owner"]
            await program.stop()
        own.kill()
        await own.arestart()
        async with tz.Client(own.grpc_url) as client, client.model("fixed"):
            await until(lambda: files_of(owner) == [])
        assert owner_files(own.grpc_url) == set()
        assert own_regions() == set()


def test_which_urls_mean_the_same_server():
    def key(url):
        return server_key(parse_url(url))

    assert key("localhost:8001") == key("127.0.0.1:8001") == key("grpc://[::1]:8001")
    assert key("localhost:8001") != key("localhost:8002")
    assert "net:[" in key("localhost:8001"), "loopback means another host in each namespace"
    assert key("Triton:8001") == key("grpcs://triton:8001") == "triton:8001"
    assert key("unix:/run/../run/t.sock") == key("unix:///run/t.sock") == "unix:/run/t.sock"
