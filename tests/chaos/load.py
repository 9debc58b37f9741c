"""`Load`: callers each of which knows what its own answer must be, and what became of them.

Every call's input carries a tag that no other call has, in each of its values but the first, which
says how long the model takes. The output must be exactly the input plus one. So a slot that is
used by two calls at a time shows as a wrong result, whoever wrote last.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
from collections import Counter

import numpy as np

import triton_zerocopy as tz

PATIENCE = 30.0  # seconds; only what is broken takes that long


class Load:
    """Calls of models, their results checked and their ends counted.

    Args:
        seed: of everything that is by chance.
        first_tag: of its calls; another load's must be far away.
        pause: seconds that a caller waits after an error.

    Attributes:
        ends: how many calls ended how: ok, cancelled, timed out, unavailable.
        wrong: what should never be: for each wrong result what is known of it.
        surprises: errors that nobody allowed for.
        refusals: what the allowed ones said.
        server: is started again if it crashes by itself. Triton before 2.53 may, when a connection
            breaks in the moment in which a call on it ends (server#7840).
    """

    def __init__(self, seed=0, *, first_tag=1, pause=0.02):
        self.pause = pause
        self.rng = random.Random(seed)
        self.ends = Counter()
        self.wrong = []
        self.surprises = []
        self.refusals = set()
        self.last_error = None
        self.server = None
        self._tags = itertools.count(first_tag)
        self._is_over = False

    # One call

    def tensor(self, seconds=0.0, count=16):
        x = np.full(count, next(self._tags), np.float32)
        x[0] = seconds
        return x

    def check(self, x, y, what):
        if not np.array_equal(y, x + 1):
            self.wrong.append((what, x[:4].tolist(), len(x), np.asarray(y)[:4].tolist(), len(y)))

    async def infer(self, model, seconds=0.0, count=16, **options):
        x = self.tensor(seconds, count)
        result = await model.infer({"INPUT0": x}, **options)
        self.check(x, await result.numpy("OUTPUT0"), "infer")

    async def lease(self, model, seconds=0.0, count=16, **options):
        x = self.tensor(seconds, count)
        async with model.lease({"INPUT0": x.shape}, **options) as lease:
            if isinstance(lease.inputs["INPUT0"], np.ndarray):
                lease.inputs["INPUT0"][:] = x
                result = await lease.infer(**options)
            else:
                result = await lease.infer({"INPUT0": x}, **options)
            self.check(x, await result.numpy("OUTPUT0"), "lease")

    async def into(self, model, seconds=0.0, count=16, **options):
        x, y = self.tensor(seconds, count), np.zeros(count, np.float32)
        await model.infer({"INPUT0": x}, out={"OUTPUT0": y}, **options)
        self.check(x, y, "out")

    async def count(self, call, *allowed):
        """Await a call and count how it ended; errors besides those allowed are surprises."""
        try:
            await call
        except asyncio.CancelledError:
            end = "cancelled"
            if asyncio.current_task().cancelling():
                self.ends[end] += 1
                raise
        except tz.InferTimeout:
            end = "timed out"
        except tz.ServerUnavailable as error:
            end, self.last_error = "unavailable", str(error)
        except allowed as error:
            end, self.last_error = "refused", str(error)
            self.refusals.add(str(error))
        except Exception as error:
            end = "surprise"
            self.surprises.append(error)
        else:
            end = "ok"
        self.ends[end] += 1
        return end

    async def cancelled_after(self, seconds, call, *allowed):
        """The same with a call that is cancelled from outside, if it lasts so long."""
        task = asyncio.create_task(self.count(call, *allowed))
        handle = asyncio.get_running_loop().call_later(seconds, task.cancel)
        await asyncio.wait([task])
        handle.cancel()
        return "cancelled" if task.cancelled() else task.result()

    # Many

    async def any_call(
        self, model, *allowed, longest=0.02, most=256, slow=1 / 3, hurry=0.5, is_impatient=False
    ):
        """One call as chance wants it: its kind, size, duration, and its caller's patience.

        Args:
            model: what is called.
            allowed: errors that may be.
            longest: seconds that the model takes at most.
            most: values in a tensor at most.
            slow: which share of calls takes time at all.
            hurry: which share of calls is cancelled or has a timeout.
            is_impatient: each of them is.
        """
        rng = self.rng
        way = rng.choice([self.infer, self.infer, self.lease, self.into])
        seconds = rng.random() * longest if rng.random() < slow else 0.0
        count = rng.choice([16, 16, 64, rng.randint(16, max(16, most))])
        fate = rng.random() * (hurry if is_impatient else 1)
        if fate < hurry / 2:
            # Half of them before the server has the request, or while it answers.
            patience = rng.choice([0.0, 0.0001, 0.001, rng.random() * 2 * longest])
            return await self.cancelled_after(patience, way(model, seconds, count), *allowed)
        if fate < hurry:
            patience = rng.choice([0.0001, 0.001, longest, 2 * longest])
            return await self.count(way(model, seconds, count, timeout=patience), *allowed)
        return await self.count(way(model, seconds, count), *allowed)

    async def caller(self, model, *allowed, **options):
        """Call until `stop`; after an error wait a moment, as a sane caller does."""
        while not self._is_over:
            end = await self.any_call(model, *allowed, **options)
            await asyncio.sleep(self.pause if end in ("unavailable", "refused", "surprise") else 0)

    def start(self, model, *allowed, callers=12, **options):
        """Let callers run until `stop`. Some never wait long, also if nothing is answered."""
        self._is_over = False
        self._callers = [
            asyncio.create_task(
                self.caller(model, *allowed, is_impatient=number % 3 == 0, **options)
            )
            for number in range(callers)
        ]

    async def some(self, end="ok", count=10):
        """Wait until so many more calls have ended so."""
        enough = self.ends[end] + count
        async with asyncio.timeout(PATIENCE):
            while self.ends[end] < enough:
                await self.revive()
                await asyncio.sleep(0.001)

    async def revive(self):
        """Start the server if it has crashed."""
        if self.server is not None and not self.server.is_running:
            await self.server.arestart()

    async def stop(self):
        """End the callers, each after its call."""
        self._is_over = True
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*self._callers)

    async def drop(self):
        """Cancel the callers."""
        callers, self._callers = self._callers, []
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)

    # Afterwards

    async def at_peace(self, model):
        """Nothing was wrong, and all slots are there again: each can be held, and works."""
        assert not self.wrong
        assert not self.surprises, repr(self.surprises[:3])
        async with asyncio.timeout(PATIENCE):
            while not all_free(model):
                await self.revive()
                await asyncio.sleep(0.005)
        await self.until_all_work(model)

    async def until_all_work(self, model):
        """Hold all slots at a time, and call with each, until no broken link is in the way.

        One that was to be cut may still be, and a server that crashed over the last cut takes a
        moment to be gone.
        """
        async with asyncio.timeout(PATIENCE):
            while True:
                await self.revive()
                try:
                    await self.use_all(model)
                except* tz.ServerUnavailable:
                    await asyncio.sleep(0.05)
                else:
                    return

    async def use_all(self, model):
        """Hold all slots at a time, and call with each."""
        picture = model.statistics()
        barrier = asyncio.Barrier(picture.capacity)

        async def use_one():
            async with model.lease({"INPUT0": (16,)}) as lease:
                await barrier.wait()
                x = self.tensor()
                result = await lease.infer({"INPUT0": x})
                self.check(x, await result.numpy("OUTPUT0"), "afterwards")

        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            for _ in range(picture.capacity):
                group.create_task(use_one())
        assert not self.wrong
        assert model.statistics().available == picture.capacity


def all_free(model):
    """Tell whether nothing of a model's slots is in use. Garbage may have arrays of a lease."""
    gc.collect()
    picture = model.statistics()
    rest = picture.quarantined + picture.parked + picture.in_flight + picture.waiting
    return picture.available == picture.capacity and not rest


def open_files():
    """Return what each descriptor of this process is, but pollers, which gRPC has as it likes."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return {number: what for number, what in found.items() if "[event" not in what}


def running_tasks():
    """Return the tasks of this loop, but those in which fixtures end."""
    return {
        task
        for task in asyncio.all_tasks()
        if not task.get_coro().__qualname__.startswith("TestRunner.")
    }


class Witness:
    """Of what a block leaves open: file descriptors, and tasks of the loop.

    Files, registrations and processes are the guard's of all tests.
    """

    def __init__(self, server):
        self._url = server.grpc_url

    async def __aenter__(self):
        # What gRPC and the loop open once and keep, they open now.
        async with tz.Client(self._url) as client, client.model("work") as model:
            await model.infer({"INPUT0": np.zeros(1, np.float32)})
        await self._settle(lambda: True)
        self._files = open_files()
        self._tasks = running_tasks()
        return self

    async def __aexit__(self, kind, error, traceback):
        if error is None:
            await self._settle(lambda: len(open_files()) <= len(self._files))
            now = open_files()
            new = Counter(now.values()) - Counter(self._files.values())
            assert len(now) <= len(self._files), f"left open: {new}"
            await self._settle(lambda: running_tasks() <= self._tasks)
            assert running_tasks() <= self._tasks, running_tasks() - self._tasks

    async def _settle(self, condition):
        # gRPC closes its sockets in threads of its own, and garbage has some, too.
        deadline = asyncio.get_running_loop().time() + 5
        steady, last = 0, {}
        while steady < 2 or not condition():
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(0.01)
            gc.collect()
            now = open_files()
            steady, last = (steady + 1 if now == last else 0), now
