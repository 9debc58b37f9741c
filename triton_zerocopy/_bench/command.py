"""A whole benchmark: from checked options to what is printed and written."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from typing import Any

from .._client import Client
from .arguments import Options
from .callers import open_team
from .environment import environment
from .failures import BenchError
from .plan import Cell, cells, with_defaults
from .plot import check_plotting, draw
from .progress import Progress
from .results import Result, facts, make_result, write
from .runner import Limit, measure, warm_up
from .table import heading, legend, row, size
from .target import Target, open_target
from .workload import Workload, make_workload


def bench(options: Options) -> None:
    """Measure, print a table, and write the files that were asked for.

    Raises:
        BenchError, ZeroCopyError: it cannot be measured; the message says why.
    """
    options = with_defaults(options)
    loop_factory = _loop_factory(options)
    if options.plot is not None:
        check_plotting()
    with (
        open_target(options) as target,
        asyncio.Runner(loop_factory=loop_factory) as runner,
    ):
        measured = _Benchmark(options, target)
        runner.run(measured.run())
    print(legend(measured.cells))
    if options.json is not None:
        write(options.json, measured.facts())
    if options.plot is not None:
        draw(options.plot, f"model {target.model!r}", measured.results)


def _loop_factory(options: Options) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if not options.uses_uvloop:
        return None
    if importlib.util.find_spec("uvloop") is None:
        raise BenchError("--uvloop needs uvloop, which is not here: pip install uvloop")
    import uvloop

    return uvloop.new_event_loop


class _Benchmark:
    """All measurements of one model."""

    def __init__(self, options: Options, target: Target) -> None:
        self.cells = cells(options)
        self.results: list[Result] = []
        self._options = options
        self._target = target
        self._server = ""
        self._environment = environment(uses_uvloop=options.uses_uvloop)

    def facts(self) -> dict[str, Any]:
        return facts(self._environment, self._target, self._server, self.results)

    async def run(self) -> None:
        options, progress = self._options, Progress(len(self.cells))
        # Before the table's head: what is wrong with the server or the model shows here.
        async with Client(self._target.url, timeout=options.timeout) as client:
            self._server = (await client._runtime.server_info()).version  # noqa: SLF001
            sizes = dict.fromkeys(cell.size for cell in self.cells)
            workloads = {wanted: await self._workload(client, wanted) for wanted in sizes}
            for cell in self.cells:
                workload = workloads[cell.size]
                progress.start(f"{cell}, {size(workload.input_bytes)} in")
                try:
                    result = await self._measure(client, cell, workload, progress)
                finally:
                    progress.clear()
                if not self.results:
                    print(heading(self._environment, self._target, self._server))
                self.results.append(result)
                print(row(result), flush=True)

    async def _workload(self, client: Client, wanted: int | None) -> Workload:
        # Over the wire: only to read what the model takes.
        target, options = self._target, self._options
        async with client.model(target.model, options.version, memory="wire") as model:
            return make_workload(model, options, wanted)

    async def _measure(
        self, client: Client, cell: Cell, workload: Workload, progress: Progress
    ) -> Result:
        options = self._options
        async with open_team(client, cell, options, self._target.model, workload) as team:
            await warm_up(team.call, cell.callers, options.warm_up)
            limit = Limit(options.seconds, options.calls)
            timing = await measure(team.call, cell.callers, limit, progress.tell)
            return make_result(cell, workload, team, timing)
