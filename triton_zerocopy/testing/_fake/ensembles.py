"""Ensembles: steps that run as soon as their inputs are there, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from .checks import Checks
from .configs import ModelConfig
from .refusals import Refusal, internal
from .scheduling import Job
from .tensors import Inline, Input, Output


class Step(Protocol):
    """A model that an ensemble is made of."""

    @property
    def config(self) -> ModelConfig: ...

    async def run(self, job: Job) -> None: ...


class Ensemble:
    """Runs the steps of an ensemble.

    When a step fails, the client is answered at once, while other steps still read the inputs:
    of these nobody knows any more that they use the client's memory. Triton has it so (core,
    src/ensemble_scheduler/ensemble_scheduler.cc), and crashes if the memory is unregistered then.

    Attributes:
        running: How many requests are under way.
    """

    queued = 0

    def __init__(self, config: ModelConfig, find: Callable[[str, int], Step]) -> None:
        self._config = config
        self._steps: list[Any] = list(config.message.ensemble_scheduling.step)
        self._find = find
        self._tasks: set[asyncio.Task[dict[str, Input]]] = set()
        self.running = 0
        self._ended = asyncio.Condition()

    async def run(self, job: Job) -> None:
        """Run all steps, and deliver the outputs.

        Raises:
            Refusal: A step failed.
        """
        self.running += 1
        try:
            await job.reach("running")
            tensors = {entry.name: entry for entry in job.inputs}
            try:
                await self._run_steps(job, tensors)
            except Refusal as error:
                text = f"in ensemble '{self._config.name}', {error.text}"
                raise Refusal(error.code, text) from error
            wanted = [name for name in self._config.outputs if name in job.requested]
            await job.deliver([_output(tensors[name]) for name in wanted if name in tensors])
        finally:
            self.running -= 1
            async with self._ended:
                self._ended.notify_all()

    async def close(self) -> None:
        """Let all requests end."""
        async with self._ended:
            await self._ended.wait_for(lambda: not self.running)

    async def _run_steps(self, job: Job, tensors: dict[str, Input]) -> None:
        waiting = self._needed(job)
        under_way: set[asyncio.Task[dict[str, Input]]] = set()
        while waiting or under_way:
            for step in list(waiting):
                if all(name in tensors for name in step.input_map.values()):
                    waiting.remove(step)
                    task = asyncio.create_task(self._run_step(job, step, dict(tensors)))
                    under_way.add(task)
                    self._tasks.add(task)
                    task.add_done_callback(self._forget)
            if not under_way:
                raise internal("unexpected deadlock, at least one output is not set")
            done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                tensors.update(task.result())

    def _needed(self, job: Job) -> list[Any]:
        """Return the steps without those that no requested output comes from."""
        wanted, steps = set(job.requested), set[int]()
        while True:
            more = {
                number
                for number, step in enumerate(self._steps)
                if number not in steps and wanted & set(step.output_map.values())
            }
            if not more:
                return [self._steps[number] for number in sorted(steps)]
            steps |= more
            wanted |= {name for number in more for name in self._steps[number].input_map.values()}

    async def _run_step(self, job: Job, step: Any, tensors: dict[str, Input]) -> dict[str, Input]:
        model = self._find(step.model_name, step.model_version)
        inputs = [
            Input(name, tensors[source].datatype, tensors[source].shape, tensors[source].source)
            for name, source in step.input_map.items()
        ]
        found: dict[str, Input] = {}

        async def deliver(outputs: list[Output]) -> None:
            for output in outputs:
                name = step.output_map[output.name]
                found[name] = Input(name, output.datatype, output.shape, Inline(output.data))

        requested = Checks(model.config, job.request_id).check(inputs, list(step.output_map))
        await model.run(
            Job(
                inputs=inputs,
                requested=requested,
                deliver=deliver,
                request_id=job.request_id,
                parameters=job.parameters,
                is_cancelled=job.is_cancelled,
            )
        )
        return found

    def _forget(self, task: asyncio.Task[dict[str, Input]]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # of a step that nobody waits for any more


def _output(tensor: Input) -> Output:
    return Output(tensor.name, tensor.datatype, tensor.shape, tensor.source.read())
