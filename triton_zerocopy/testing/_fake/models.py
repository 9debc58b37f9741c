"""A served model: what runs it, and what it counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from .configs import ModelConfig
from .ensembles import Ensemble, Step
from .python_models import AnsweredError, Instance, ModelFailure
from .refusals import Refusal, internal
from .scheduling import Job, Scheduler
from .tensors import Output

State = Literal["READY", "UNLOADING", "UNAVAILABLE"]


class Runner(Protocol):
    """What runs the requests of a model."""

    @property
    def queued(self) -> int: ...

    running: int

    async def run(self, job: Job) -> None: ...
    async def close(self) -> None: ...


@dataclass
class Statistics:
    """What a model counts. Durations are not measured."""

    succeeded: int = 0
    failed: int = 0
    executed: int = 0
    inferences: int = 0
    last: int = 0  # milliseconds since 1970

    def to_json(self, config: ModelConfig) -> dict[str, Any]:
        """Return them as HTTP has them."""
        durations = ("queue", "compute_input", "compute_infer", "compute_output")
        counted: dict[str, Any] = {"count": self.succeeded, "ns": 0}
        nothing = {"count": 0, "ns": 0}
        batch = {"batch_size": 1} | dict.fromkeys(durations[1:], counted)
        return {
            "name": config.name,
            "version": str(config.versions[-1]),
            "last_inference": self.last,
            "inference_count": self.inferences,
            "execution_count": self.executed,
            "inference_stats": {"success": counted, "fail": {"count": self.failed, "ns": 0}}
            | dict.fromkeys(durations, counted)
            | dict.fromkeys(("cache_hit", "cache_miss"), nothing),
            "response_stats": {},
            "batch_stats": [batch] if self.succeeded else [],
            "memory_usage": [],
        }


class Model:
    """A model that is served.

    Attributes:
        config: Its config.
        state: Whether it takes requests.
        statistics: What it counted.
    """

    def __init__(self, config: ModelConfig, find: Callable[[str, int], Step]) -> None:
        """Make a model ready.

        Args:
            config: What the model is.
            find: Finds the models that an ensemble is made of.

        Raises:
            Refusal: It cannot be loaded.
        """
        self.config = config
        self.state: State = "READY"
        self.statistics = Statistics()
        self._runner: Runner = (
            Ensemble(config, find) if config.is_ensemble else Scheduler(config, _instances(config))
        )

    @property
    def queued(self) -> int:
        return self._runner.queued

    @property
    def running(self) -> int:
        return self._runner.running

    async def run(self, job: Job) -> None:
        """Run a request, and deliver its outputs.

        Raises:
            Refusal: It failed.
        """
        numbers = self.statistics
        has_run = False

        async def deliver(outputs: list[Output]) -> None:
            nonlocal has_run
            has_run = True
            await job.deliver(outputs)

        try:
            await self._runner.run(replace(job, deliver=deliver))
        except Refusal as error:
            # That outputs do not fit is no failure of the model, and neither is what it answers.
            has_run |= isinstance(error, AnsweredError)
            numbers.executed += isinstance(error, ModelFailure)
            numbers.failed += not has_run
            raise
        finally:
            if has_run:
                numbers.succeeded += 1
                numbers.executed += 1
                numbers.inferences += (
                    job.inputs[0].shape[0] if self.config.max_batch_size and job.inputs else 1
                )
                numbers.last = int(time.time() * 1000)

    async def unload(self) -> None:
        """Take no more requests, and finish those that are there."""
        self.state = "UNLOADING"
        await self._runner.close()
        self.state = "UNAVAILABLE"


def _instances(config: ModelConfig) -> list[Instance]:
    name, values = config.name, config.to_json()
    try:
        return [
            Instance(f"{group.name}_{number}", config.source, values)
            for group in config.message.instance_group
            for number in range(group.count)
        ]
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise internal(
            f"load failed for model '{name}': version {config.versions[-1]} is at UNAVAILABLE"
            f" state: Internal: {reason};\n"
        ) from error
