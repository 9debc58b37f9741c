"""Those who call: what one call is, and what it took to get ready for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from .._client import Client
from .._model import Model
from .arguments import Options
from .copies import Copied, copied
from .plan import Cell
from .workload import Workload, byte_size

Call = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Team:
    """Callers that are ready.

    Attributes:
        call: makes one call; all callers may use it at the same time.
        output_bytes: bytes of all outputs of a call.
        copied: what the library copies for a call.
    """

    call: Call
    output_bytes: int
    copied: Copied


@asynccontextmanager
async def open_team(
    client: Client, cell: Cell, options: Options, model_name: str, workload: Workload
) -> AsyncIterator[Team]:
    """Open a model with a slot for each caller, and call it until sizes and slots are settled."""
    async with client.model(
        model_name,
        options.version,
        memory=cell.memory,
        slots=cell.callers,
        shapes=workload.leased or None,
        repeatable=True,  # an output that outgrew its slot: the figures are to be had anyway
        timeout=options.timeout,
    ) as model:
        specs = {**model.inputs, **model.outputs}
        # The first call tells the sizes of variable outputs, the second one is like all others.
        await model.infer(workload.inputs)
        outputs = dict(await model.infer(workload.inputs))
        if cell.way == "lease":
            await _fill(model, workload, cell.callers)
        yield Team(
            _lease_call(model, workload) if cell.way == "lease" else _infer_call(model, workload),
            sum(byte_size(output) for output in outputs.values()),
            copied(cell, specs, workload.inputs, outputs),
        )


def _infer_call(model: Model, workload: Workload) -> Call:
    inputs = workload.inputs

    async def call() -> object:
        return await model.infer(inputs)

    return call


def _lease_call(model: Model, workload: Workload) -> Call:
    leased, rest = workload.leased, workload.unleased or None

    async def call() -> None:
        async with model.lease(leased) as lease:
            await lease.infer(rest)

    return call


async def _fill(model: Model, workload: Workload, callers: int) -> None:
    """Write the inputs into all slots, where they stay: no call writes there again.

    Twice, for a slot that grows for its first outputs is a new one.
    """
    given = dict(workload.inputs)
    for _ in range(2):
        async with AsyncExitStack() as stack:
            leases = [
                await stack.enter_async_context(model.lease(workload.leased))
                for _ in range(callers)
            ]
            await asyncio.gather(*[lease.infer(given) for lease in leases])
