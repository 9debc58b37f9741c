"""Nothing is left to take: /dev/shm, file descriptors, address space. Then there is again.

Each runs in a process of its own, with a server of its own where /dev/shm is its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from owners import Program

pytestmark = pytest.mark.anyio

TESTS = Path(__file__).parents[1]


def indented(text):
    return text.replace("\n", "\n    ")


CHECK = """
import gc, resource
X = np.arange(16, dtype=np.float32) * 0

def big(mebibytes):
    x = np.full(mebibytes << 18, 3, np.float32)
    x[0] = 0
    return x

async def works(model, x=X):
    result = await model.infer({"INPUT0": x})
    assert np.array_equal(result["OUTPUT0"], x + 1)

async def all_work(model):
    '''Each slot, at a time.'''
    picture = model.statistics()
    assert picture.available == picture.capacity, picture
    barrier = asyncio.Barrier(picture.capacity)
    async def use():
        async with model.lease({"INPUT0": X.shape}) as lease:
            await barrier.wait()
            assert (await lease.infer({"INPUT0": X}))["OUTPUT0"][1] == 1
    await asyncio.gather(*(use() for _ in range(picture.capacity)))
"""

SMALL = f"""
import subprocess, sys
sys.path.insert(0, {str(TESTS)!r})
from triton_zerocopy.testing import FakeTriton
from chaos.served import work_model
from owners import BEGIN
URL = None
exec(BEGIN.replace("sys.argv[1]", "None"))
{CHECK}
async def main(url):
    async with tz.Client(url) as client, client.model("work", slots=4) as model:
        await all_work(model)
        for _ in range(3):
            # 2 MiB in and out for each: 4 slots do not fit into 8 MiB, some of them do.
            ends = await asyncio.gather(
                *(works(model, big(2)) for _ in range(8)), return_exceptions=True
            )
            refused = [end for end in ends if end is not None]
            assert refused and len(refused) < 8, ends
            for end in refused:
                assert isinstance(end, tz.CapacityError), repr(end)
                assert end.needed >= 2 << 20
                assert not end.model_ran
                assert "were wanted, /dev/shm has " in str(end), end
                assert "make it larger" in str(end), end
            await all_work(model)
        try:
            await client.region(64 << 20)
            raise SystemExit("there cannot be so much room")
        except tz.CapacityError as error:
            assert error.needed == 64 << 20
        # Somebody else fills it to the brim and goes away.
        filler = os.open("/dev/shm/filler", os.O_WRONLY | os.O_CREAT)
        try:
            while True:
                os.write(filler, b"x" * 4096)
        except OSError:
            os.close(filler)
        try:
            await client.region(1 << 20)
            raise SystemExit("there cannot be so much room")
        except tz.CapacityError:
            pass
        os.unlink("/dev/shm/filler")
        async with client.region(1 << 20):
            pass
        await all_work(model)
    left = [name for name in os.listdir("/dev/shm") if name.startswith("tzc-")]
    assert left == [], left

with FakeTriton({{"work": work_model()}}) as server:
    asyncio.run(main(server.grpc_url))
    assert server.state().registered == []
print("done")
"""


def test_a_small_dev_shm():
    """8 MiB, as Docker's 64 are for larger tensors; the message says what was wanted, and is there."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, of util-linux")
    mount = "mount -t tmpfs -o size=8m tmpfs /dev/shm"
    enter = ["unshare", "--mount", "--map-root-user"]
    allowed = subprocess.run(
        [*enter, "sh", "-c", mount], capture_output=True, text=True, check=False
    )
    if allowed.returncode:
        pytest.skip(f"no mount namespace of one's own here: {allowed.stderr.strip()}")
    done = subprocess.run(
        [*enter, "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, SMALL],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.endswith("done\n"), done.stderr[-3000:]


async def test_no_file_descriptors(unruly):
    """Refused with the remedy, or the call goes another way; all is well when there are some."""
    code = f"""
    {indented(CHECK)}
    async def main():
        async with tz.Client(URL) as client, client.model("work", slots=4) as model:
            await all_work(model)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            top = max(map(int, os.listdir("/proc/self/fd"))) + 50

            def fill(spare):
                resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
                filled = []
                try:
                    while True:
                        filled.append(os.dup(1))
                except OSError:
                    for _ in range(spare):
                        os.close(filled.pop())
                return filled

            def drain(filled):
                for descriptor in filled:
                    os.close(descriptor)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

            refused = 0
            # Each place where one is needed is without it once.
            for spare in range(8):
                filled = fill(spare)
                ends = await asyncio.gather(
                    *(works(model, big(1 + spare)) for _ in range(4)), return_exceptions=True
                )
                drain(filled)
                for end in ends:
                    assert end is None or isinstance(end, tz.CapacityError), repr(end)
                    assert end is None or "ulimit -n" in str(end), end
                    refused += end is not None
                del ends
                await all_work(model)
            filled = fill(0)
            try:
                await client.region(4096)
            except tz.CapacityError as error:
                assert "ulimit -n" in str(error)
                refused += 100
            drain(filled)
            say(refused=refused)
            await all_work(model)
            owner = owner_of(client)
        say(left=[name for name in os.listdir("/dev/shm") if owner in name])
    asyncio.run(main())
    """
    async with Program(code, unruly.grpc_url) as program:
        assert (await program.hear())["refused"] > 100
        assert await program.hear() == {"left": []}
        assert await program.wait() == 0


async def test_no_address_space(unruly):
    """What cannot be mapped is refused, typed, and the slots are there when there is room."""
    code = f"""
    {indented(CHECK)}
    async def main():
        async with tz.Client(URL) as client, client.model("work", slots=4) as model:
            await all_work(model)
            x = big(32)
            soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            with open("/proc/self/statm") as file:
                now = int(file.read().split()[0]) * resource.getpagesize()
            kinds = set()
            for spare in (4, 40, 80, 120, 160):
                resource.setrlimit(resource.RLIMIT_AS, (now + (spare << 20), hard))
                try:
                    await model.infer({{"INPUT0": x}})
                except (tz.ZeroCopyError, MemoryError) as error:
                    kinds.add(type(error).__name__)
                    del error
                finally:
                    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
                while model.statistics().available < 4:
                    await asyncio.sleep(0.001)
                await all_work(model)
            say(kinds=sorted(kinds))
            await works(model, x)
            owner = owner_of(client)
        say(left=[name for name in os.listdir("/dev/shm") if owner in name])
    asyncio.run(main())
    """
    async with Program(code, unruly.grpc_url) as program:
        kinds = (await program.hear())["kinds"]
        assert "CapacityError" in kinds
        assert await program.hear() == {"left": []}
        assert await program.wait() == 0
