"""Many calls while everything goes wrong that can; what was promised is counted at the end.

    python tests/soak.py --calls 200000 --seed 1

Two clients call one real server, one of them over a link. Callers cancel, and time out from a
tenth of a millisecond up; the server is killed and restarted every few seconds, the link is cut
or swallows everything. Each result is compared with its own input. The exit status is not 0 if a
promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import http.client
import json
import logging
import statistics
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from chaos.load import PATIENCE, Load, all_free, open_files
from chaos.proxy import ANSWERS, REQUESTS, Proxy
from chaos.served import work_model
from support import own_files

import triton_zerocopy as tz
from triton_zerocopy.testing import TritonServer

SOON = 1.0  # seconds from the server's being ready to the first success
STEADY = 1.2  # how much larger the process may be at the end than half-way
SLACK = 16.0  # MiB that do not count
KIND = {"most": 16384, "longest": 0.03, "slow": 0.15, "hurry": 0.3}
MAY_SAY = ("Unable to find shared memory region", "no available versions")
"""What the server may answer while it comes and goes: a region may be lost twice in one call."""


@dataclass
class Report:
    """What happened."""

    seconds: float = 0.0
    ends: Counter = field(default_factory=Counter)
    wrong: list = field(default_factory=list)
    surprises: list = field(default_factory=list)
    lost_slots: int = 0
    files: int = 0
    registrations: int = 0
    descriptors: tuple = (0, 0)
    sizes: list = field(default_factory=list)
    restarts: int = 0
    cuts: int = 0
    holes: int = 0
    recoveries: list = field(default_factory=list)

    def broken(self):
        """Return the promises that were broken."""
        slowest = max(self.recoveries, default=0.0)
        half, end = self.sizes[1], self.sizes[2]
        promises = {
            "every result is its own call's": not self.wrong,
            "every error is of a kind that was foreseen": not self.surprises,
            "no slot is lost": self.lost_slots == 0,
            "no file is left": self.files == 0,
            "no registration is left": self.registrations == 0,
            "no descriptor is left": self.descriptors[1] <= self.descriptors[0],
            "memory does not grow": end <= half * STEADY + SLACK,
            f"served again within {SOON:g} s": slowest <= SOON,
            "something was served": self.ends["ok"] > 0,
        }
        return [promise for promise, is_kept in promises.items() if not is_kept]

    def table(self):
        slow = self.recoveries or [0.0]
        rows = [
            ("calls", f"{self.ends.total():,} in {self.seconds:.0f} s"),
            *[(end, f"{self.ends[end]:,}") for end in ("ok", "cancelled", "timed out")],
            ("server unavailable", f"{self.ends['unavailable']:,}"),
            ("region lost twice, or model not ready", f"{self.ends['refused']:,}"),
            ("WRONG RESULTS", len(self.wrong)),
            ("unforeseen errors", len(self.surprises)),
            ("lost slots", self.lost_slots),
            ("files left", self.files),
            ("registrations left", self.registrations),
            ("descriptors before, after", "{} {}".format(*self.descriptors)),
            ("MiB at 10 %, 50 %, 100 %", " ".join(f"{size:.0f}" for size in self.sizes)),
            ("server killed and restarted", self.restarts),
            ("link cut, black hole", f"{self.cuts} {self.holes}"),
            ("recovery median, max", f"{statistics.median(slow):.3f} s {max(slow):.3f} s"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def resident():
    """Return the size of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def registrations(server):
    host, port = server.http_url.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/v2/systemsharedmemory/status")
        return len(json.loads(connection.getresponse().read()))


class Soak:
    """One run.

    Args:
        server: with the model ``work``, running.
        proxy: a link to it.
        seed: of all that is by chance.
        every: seconds between two restarts.
        tell: is told now and then how it goes; a line of text.
    """

    def __init__(self, server, proxy, *, seed, every, tell=lambda line: None):
        self._server, self._proxy = server, proxy
        self._every, self._tell = every, tell
        self._loads = [
            Load(f"{seed}/direct", first_tag=1, pause=0.1),
            Load(f"{seed}/linked", first_tag=8_000_000, pause=0.1),
        ]
        self._rng = self._loads[0].rng
        self.report = Report()

    async def run(self, calls, seconds, *, callers=48):
        """Call, until there were so many calls or so many seconds have passed."""
        report = self.report
        await self._warm_up()
        files, known = own_files(), registrations(self._server)
        before = open_files()
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with contextlib.AsyncExitStack() as stack:
            models = []
            for url, slots in ((self._server.grpc_url, 8), (self._proxy.url, 4)):
                client = await stack.enter_async_context(tz.Client(url))
                models.append(await client.model("work", slots=slots))
            for load, model, share in zip(self._loads, models, (0.75, 0.25), strict=True):
                load.start(model, tz.InferenceError, callers=max(3, int(callers * share)), **KIND)
            try:
                await self._until_enough(calls, start + seconds, start)
            finally:
                for load in self._loads:
                    await load.stop()
            report.seconds = loop.time() - start
            for load, model in zip(self._loads, models, strict=True):
                report.lost_slots += await self._lost(load, model)
        self._count()
        await _settle(lambda: len(open_files()) <= len(before))
        report.descriptors = len(before), len(open_files())
        report.files = len(own_files() - files)
        report.registrations = registrations(self._server) - known
        while len(report.sizes) < 3:
            report.sizes.append(resident())
        return report

    async def _warm_up(self):
        # What gRPC, numpy and the loop take once, they take now.
        async with tz.Client(self._server.grpc_url) as client, client.model("work") as model:
            load = Load()
            await asyncio.gather(*(load.infer(model) for _ in range(32)))
        gc.collect()
        await asyncio.sleep(0.1)

    async def _until_enough(self, calls, deadline, start):
        chaos = [asyncio.create_task(work) for work in (self._restart(), self._break_the_link())]
        loop = asyncio.get_running_loop()
        told = start
        try:
            while (done := self._count().total()) < calls and loop.time() < deadline:
                share = max(done / calls, (loop.time() - start) / (deadline - start))
                if share >= (0.1, 0.5, 1.0)[len(self.report.sizes)]:
                    self.report.sizes.append(resident())
                if loop.time() >= told + 5:
                    told = loop.time()
                    self._tell(f"{told - start:4.0f} s  {dict(self.report.ends)}")
                for task in chaos:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.05)
        finally:
            self._is_over = True
            await asyncio.wait(chaos, timeout=2 * PATIENCE)
        for task in chaos:
            task.result()

    _is_over = False

    async def _pause(self, seconds):
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while loop.time() < until and not self._is_over:
            await asyncio.sleep(0.02)

    async def _restart(self):
        loop = asyncio.get_running_loop()
        direct = self._loads[0]
        while True:
            await self._pause(self._every * (0.5 + self._rng.random()))
            if self._is_over:
                return
            await self._server.akill()
            await self._server.arestart()
            ready, before = loop.time(), direct.ends["ok"]
            while direct.ends["ok"] == before and loop.time() < ready + PATIENCE:
                await asyncio.sleep(0.001)
            self.report.recoveries.append(loop.time() - ready)
            self.report.restarts += 1

    async def _break_the_link(self):
        rng = self._rng
        while True:
            await self._pause(0.2 + rng.random())
            if self._is_over:
                return
            by = rng.choice(["reset", "finish"])
            match rng.randrange(4):
                case 0:
                    self._proxy.black_hole()
                    await self._pause(0.2)
                    self._proxy.heal(by)
                    self.report.holes += 1
                case 1:
                    direction = rng.choice([REQUESTS, ANSWERS])
                    self._proxy.stop_after(rng.randint(1, 5000), direction, by=by)
                    self.report.cuts += 1
                case _:
                    self._proxy.cut(by)
                    self.report.cuts += 1

    def _count(self):
        report = self.report
        report.ends = sum((load.ends for load in self._loads), Counter())
        report.wrong = [each for load in self._loads for each in load.wrong]
        report.surprises = [each for load in self._loads for each in load.surprises]
        report.surprises += [
            text
            for load in self._loads
            for text in load.refusals
            if not any(each in text for each in MAY_SAY)
        ]
        return report.ends

    async def _lost(self, load, model):
        """Hold all slots of a model at a time, and tell how many are missing."""
        await _settle(lambda: all_free(model))
        if not all_free(model):
            picture = model.statistics()
            return max(1, picture.capacity - picture.available)
        load.server = self._server
        await load.until_all_work(model)
        return 0


async def _settle(condition):
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while not condition() and loop.time() < deadline:
        await asyncio.sleep(0.01)
        gc.collect()  # garbage has descriptors, too


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=1800.0, help="at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=6.0, help="seconds between restarts")
    options = parser.parse_args(arguments)
    print(f"numpy {np.__version__}, seed {options.seed}", flush=True)
    logging.getLogger("triton_zerocopy").setLevel(logging.ERROR)  # it warns at each restart
    with TritonServer({"work": work_model()}) as server, Proxy(server.grpc_url) as proxy:
        soak = Soak(
            server,
            proxy,
            seed=options.seed,
            every=options.every,
            tell=lambda line: print(line, flush=True),
        )
        report = asyncio.run(soak.run(options.calls, options.seconds))
        server.kill()
    print(report.table())
    for each in [*report.wrong[:5], *map(repr, report.surprises[:5])]:
        print("!", each)
    for promise in report.broken():
        print("BROKEN:", promise)
    return 1 if report.broken() else 0


if __name__ == "__main__":
    sys.exit(main())
