"""Owner files: who owns what, for how long, over crashes and forks."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import os
import signal
import stat
import threading
import warnings

import numpy as np
import pytest
from owners import Program
from support import forget_all, own_files, own_regions, owner_files, until, url_of

import triton_zerocopy as tz
from triton_zerocopy import _owners
from triton_zerocopy._owners import Owner, Record
from triton_zerocopy._regions.budget import Budget
from triton_zerocopy._regions.system import SystemRegion

pytestmark = pytest.mark.anyio

X = np.arange(4, dtype=np.float32)


def owners_here():
    return own_files() - own_regions()


# The file


async def test_it_is_there_and_locked_while_the_client_lives(server):
    async with tz.Client(server.grpc_url) as client:
        await client.is_ready()
        assert owners_here() == set(), "nothing is shared yet"
        async with client.model("fixed") as model:
            await model.infer({"INPUT0": X})
            (name,) = owners_here()
            assert all(each.startswith(name.removesuffix(".owner")) for each in own_regions())
            descriptor = os.open(f"/dev/shm/{name}", os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(descriptor)
            assert stat.S_IMODE(os.stat(f"/dev/shm/{name}").st_mode) == 0o600
            assert owner_files(server.grpc_url) == {name}
    assert own_files() == set()


async def test_it_has_the_mode_of_the_regions(server):
    group = os.getgid()
    async with tz.Client(server.grpc_url, shm_mode=0o660, shm_gid=group) as client:
        async with client.region(64):
            (name,) = owners_here()
            status = os.stat(f"/dev/shm/{name}")
            assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, group)


async def test_a_client_over_the_wire_has_none(server):
    async with tz.Client(server.grpc_url, memory="wire") as client, client.model("fixed") as model:
        await model.infer({"INPUT0": X})
        assert owners_here() == set()


async def test_it_stays_when_something_is_left(server):
    client = tz.Client(server.grpc_url)
    model = await client.model("slow", slots=1)
    x = np.full(16, 2, np.float32)
    task = asyncio.create_task(model.infer({"INPUT0": x}))
    await until(lambda: model.statistics().in_flight == 1)
    await client.aclose(timeout=0.01)
    with pytest.raises(tz.ServerUnavailable):
        await task
    assert own_regions() == set()
    assert owners_here() == owner_files(server.grpc_url) != set()
    await forget_all(server)
    assert own_files() == set()


async def test_many_openings_at_once_share_one(server):
    async with tz.Client(server.grpc_url) as client:
        regions = await asyncio.gather(*(client.region(64) for _ in range(8)))
        assert len(owners_here()) == 1
        await asyncio.gather(*(region.aclose() for region in regions))


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, tz.CapacityError),
        (errno.EMFILE, tz.CapacityError),
        (errno.EACCES, tz.RegionError),
    ],
)
async def test_it_cannot_be_made(server, monkeypatch, number, expected):
    """Then nothing is left, "auto" takes the wire, and the next attempt is free to work."""
    real = os.pwrite

    def refuse(*args):
        raise OSError(number, "refused")

    async with tz.Client(server.grpc_url) as client:
        with monkeypatch.context() as patch:
            patch.setattr(_owners.os, "pwrite", refuse)
            with pytest.raises(expected):
                await client.region(64)
            assert own_files() == set()
        assert os.pwrite is real
    async with tz.Client(server.grpc_url) as client, client.region(64):
        assert len(owners_here()) == 1


def test_an_owner_that_nobody_released_goes_with_its_client():
    owner = Owner("nowhere:1")
    assert len(owners_here()) == 1
    del owner
    gc.collect()
    assert own_files() == set()
    assert _owners._held == set()


def test_what_a_file_says_is_checked():
    good = Record("localhost:1", rests=True)
    assert Record.parse(good.pack()) == good
    for content in (
        b"",
        b"\0" * 50,
        b"[]",
        b"1",
        b"[" * 4000,
        b'{"format": 1}',
        b'{"format": 2, "server": "a:1", "rests": false}',
        b'{"format": 1, "server": 5, "rests": false}',
        b'{"format": 1, "server": "a:1", "rests": "no"}',
        good.pack() + b" " * 5000,
        b"\xff\xfe",
    ):
        assert Record.parse(content) is None


# Ends


async def test_a_process_that_is_terminated_under_load_leaves_nothing(server):
    """Cancelled by its signal handler, its blocks close what they hold."""
    code = """
    async def main():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
        async with tz.Client(URL) as client, client.model("slow", slots=4) as model:
            async def work():
                while True:
                    await model.infer({"INPUT0": tensor(0.02)})
            async with client.region(4096), asyncio.TaskGroup() as group:
                for _ in range(16):
                    group.create_task(work())
                await until(lambda: model.statistics().in_flight == 4)
                say(owner=owner_of(client))
                await asyncio.sleep(60)
    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        say(ended=True)
    """
    async with Program(code, server.grpc_url) as program:
        owner = (await program.hear())["owner"]
        assert files_of(owner)
        assert await program.stop(signal.SIGTERM) == 0
        assert files_of(owner) == []


async def test_a_loop_that_is_torn_down_leaves_what_the_next_client_reclaims(server):
    code = """
    async def main():
        client, model, task = await calling(0.3)
        say(owner=owner_of(client))
    asyncio.run(main())
    """
    async with Program(code, server.grpc_url) as program:
        owner = (await program.hear())["owner"]
        assert await program.wait() == 0
    assert set(files_of(owner)) <= {f"tzc-{owner}.owner"}
    async with tz.Client(server.grpc_url) as client, client.model("fixed"):
        await until(lambda: files_of(owner) == [])


def files_of(owner):
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"tzc-{owner}")]


# fork


AFTER_THE_CHILD = """
    said = []
    for n in range(3):
        said.append(float((await model.infer({"INPUT0": tensor(0, n)}))["OUTPUT0"][1]))
    late = float((await task)["OUTPUT0"][1])
    await client.aclose()
    say(said=said, late=late)
"""


# Over HTTP: a child that is forked while gRPC is in use may crash in gRPC, whoever uses it.


@pytest.mark.parametrize("end", ["os._exit(0)", "gc.collect(); os._exit(0)", "use()"])
async def test_a_fork_in_the_middle_of_a_call(server, end):
    code = f"""
import gc
async def main():
    client, model, task = await calling(0.3, 7)
    owner = owner_of(client)
    region = await client.region(64)
    def use():
        async def each():
            for call in (model.infer({{"INPUT0": tensor(0)}}), client.aclose(), client.reap(),
                         client.is_ready(), region.write(b"x")):
                try:
                    await call
                except tz.ForkedClientError:
                    continue
                os._exit(1)
            for close in (region.aclose,):
                try:
                    await close()
                except tz.ForkedClientError:
                    continue
                os._exit(2)
            held = [os.readlink("/proc/self/fd/" + n) for n in os.listdir("/proc/self/fd")
                    if os.path.lexists("/proc/self/fd/" + n)]
            os._exit(3 if any(each.endswith(".owner") for each in held) else 0)
        asyncio.set_event_loop(None)
        asyncio._set_running_loop(None)
        asyncio.run(each())
    child = os.fork()
    if child == 0:
        try:
            {end}
        finally:
            os._exit(9)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    files = [name for name in os.listdir("/dev/shm") if name.startswith("tzc-" + owner)]
    say(status=status, files=len(files))
    await region.aclose()
{AFTER_THE_CHILD}
asyncio.run(main())
"""
    async with Program(code, url_of(server, "http")) as program:
        assert await program.hear() == {"status": 0, "files": 3}
        assert await program.hear() == {"said": [1, 2, 3], "late": 8}
        assert await program.wait() == 0


async def test_a_child_that_ends_in_the_ordinary_way(server):
    """Its interpreter runs all finalizers and collects all that it inherited."""
    code = """
    import threading
    ready, over = threading.Event(), threading.Event()
    made = {}
    async def main():
        client, model, task = made["all"] = await calling(0.3, 7)
        made["region"] = await client.region(64)
        ready.set()
        await until(over.is_set)
        late = float((await task)["OUTPUT0"][1])
        again = float((await model.infer({"INPUT0": tensor(0, 1)}))["OUTPUT0"][1])
        await made["region"].aclose()
        await client.aclose()
        say(late=late, again=again)
    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    ready.wait()
    child = os.fork()
    if child == 0:
        made.clear()
        sys.exit(6)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    files = [name for name in os.listdir("/dev/shm") if owner_of(made["all"][0]) in name]
    say(status=status, files=len(files))
    over.set()
    thread.join()
    """
    async with Program(code, url_of(server, "http")) as program:
        assert await program.hear() == {"status": 6, "files": 3}
        assert await program.hear() == {"late": 8, "again": 2}
        assert await program.wait() == 0


async def test_a_child_does_not_end_the_ownership_of_an_idle_client(server):
    """Its parent has nothing registered just then, so the file would go if it were the child's."""
    code = """
    import threading
    ready, over = threading.Event(), threading.Event()
    made = {}
    async def main():
        made["client"] = client = tz.Client(URL)
        await (await client.region(64)).aclose()
        ready.set()
        await until(over.is_set)
        await client.aclose()
    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    ready.wait()
    child = os.fork()
    if child == 0:
        made.clear()
        sys.exit(6)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    files = [name for name in os.listdir("/dev/shm") if owner_of(made["client"]) in name]
    say(status=status, files=len(files))
    over.set()
    thread.join()
    """
    async with Program(code, url_of(server, "http")) as program:
        assert await program.hear() == {"status": 6, "files": 1}
        assert await program.wait() == 0


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
async def test_children_of_multiprocessing(server, tmp_path, method):
    """They end in the ordinary way, with all finalizers; a child's own client works."""
    script = tmp_path / "program.py"
    script.write_text(f"""
import asyncio, multiprocessing, sys
import numpy as np
import triton_zerocopy as tz

async def own(url):
    async with tz.Client(url) as client, client.model("fixed") as model:
        result = await model.infer({{"INPUT0": np.ones(4, np.float32)}})
        assert result["OUTPUT0"][0] == 2

def child(url):
    asyncio.run(own(url))
    sys.exit(5)

async def main(url):
    async with tz.Client(url) as client, client.model("slow", slots=1) as model:
        x = np.full(16, 0.2, np.float32)
        task = asyncio.create_task(model.infer({{"INPUT0": x}}))
        while model.statistics().in_flight < 1:
            await asyncio.sleep(0)
        process = multiprocessing.Process(target=child, args=(url,))
        process.start()
        await asyncio.to_thread(process.join)
        assert process.exitcode == 5, process.exitcode
        assert (await task)["OUTPUT0"][1] == x[1] + np.float32(1)
        await model.infer({{"INPUT0": 0 * x}})
    print("{{}}", flush=True)

if __name__ == "__main__":
    multiprocessing.set_start_method({method!r})
    asyncio.run(main(sys.argv[1]))
""")
    code = f"""
    os.execv(sys.executable, [sys.executable, "-W", "ignore", {str(script)!r}, URL])
    """
    async with Program(code, url_of(server, "http")) as program:
        await program.hear()
        assert await program.wait() == 0


async def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(server):
    """The parent is killed while a forked child goes on: what it had can be reclaimed."""
    code = """
    async def main():
        client, model, task = await calling(0.1)
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(told, b"x")
            os.close(1)
            signal.pause()
        os.read(ready, 1)
        say(owner=owner_of(client), child=child)
        await asyncio.sleep(60)
    asyncio.run(main())
    """
    async with Program(code, url_of(server, "http")) as program:
        said = await program.hear()
        try:
            await program.stop()
            assert files_of(said["owner"])
            async with tz.Client(url_of(server, "http")) as client:
                assert (await client.reap(timeout=30)).owners
            assert files_of(said["owner"]) == []
        finally:
            os.kill(said["child"], signal.SIGKILL)


def test_a_fork_while_another_thread_opens_and_closes_owner_files():
    """The child has no copy of any lock, whatever the threads were doing."""
    is_over = threading.Event()

    def make():
        while not is_over.is_set():
            Owner("nowhere:1").release()

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
                child = os.fork()
            if child == 0:
                held = []
                for number in os.listdir("/proc/self/fd"):
                    try:
                        held.append(os.readlink(f"/proc/self/fd/{number}"))
                    except OSError:
                        continue
                os._exit(any(".owner" in each for each in held))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert _owners._held == set()


async def test_a_child_removes_no_file_of_a_region_it_frees():
    region = SystemRegion(100, owner_id="0" * 16, budget=Budget(None))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        region.free()
        os._exit(0)
    os.waitpid(child, 0)
    assert len(own_regions()) == 1
    region.free()
