"""How requests wait for an instance of a model, and run on it."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from .._faults import Point
from . import pb_utils
from .configs import ModelConfig
from .python_models import Instance
from .refusals import Refusal, internal
from .tensors import Input, Output

_REJECTING: Final = 0.5  # seconds between two looks at requests that wait too long
_TAKEN: Final = 2
"""How many waiting requests the dynamic batcher has already put into batches to come, where no
cancel finds them. Measured on 2.51.0; none if a queue policy is configured."""


async def nothing(_point: Point) -> None:
    """Befall nothing."""


@dataclass(eq=False)
class Job:
    """A request for one model.

    Attributes:
        inputs: What it comes with, checked.
        requested: Names of the outputs to answer.
        request_id: The client's id.
        parameters: The client's own parameters.
        timeout: Microseconds it may wait in the queue, if the model's policy allows; 0 for any.
        deliver: Takes the outputs; the instance is busy until it is done.
        reach: Tells how far the request is.
        is_cancelled: Whether its client has given it up.
    """

    inputs: Sequence[Input]
    requested: Sequence[str]
    deliver: Callable[[list[Output]], Awaitable[None]]
    request_id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    timeout: int = 0
    reach: Callable[[Point], Awaitable[None]] = nothing
    is_cancelled: Callable[[], bool] = lambda: False


class _Waiting:
    def __init__(self, job: Job, deadline: float | None) -> None:
        self.job = job
        self.deadline = deadline
        self.is_taken = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_expired(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def end(self, problem: BaseException | None = None) -> None:
        if self.done.done():
            return
        if problem is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(problem)


class Scheduler:
    """The queue and the instances of a model.

    Attributes:
        running: How many requests have an instance.
    """

    def __init__(self, config: ModelConfig, instances: Sequence[Instance]) -> None:
        self._is_batching = config.message.HasField("dynamic_batching")
        self._policy = config.message.dynamic_batching.default_queue_policy
        # With a policy, requests are looked at until the last moment.
        has_policy = bool(self._policy.ListFields())
        self._to_take = _TAKEN if self._is_batching and not has_policy else 0
        self._queue: deque[_Waiting] = deque()
        self._changed = asyncio.Condition()
        self.running = 0
        self._instances = instances
        self._tasks = {asyncio.create_task(self._serve(instance)) for instance in instances}
        if self._is_batching and has_policy:
            self._tasks.add(asyncio.create_task(self._reject_expired()))

    @property
    def queued(self) -> int:
        """How many requests wait for an instance."""
        return len(self._queue)

    async def run(self, job: Job) -> None:
        """Queue a request, and wait until its outputs are delivered.

        Raises:
            Refusal: It failed, or was never run.
        """
        limit = self._policy.max_queue_size
        if self._is_batching and limit and self.queued >= limit:
            shown = job.request_id or "<id_unknown>"
            raise Refusal("UNAVAILABLE", f"[request id: {shown}] Exceeds maximum queue size")
        waiting = _Waiting(job, self._deadline(job))
        self._queue.append(waiting)
        self._take()
        async with self._changed:
            self._changed.notify_all()
        await waiting.done

    async def close(self) -> None:
        """Let all requests end, then the instances."""
        async with self._changed:
            self._changed.notify_all()
            await self._changed.wait_for(lambda: not self._queue and not self.running)
        for task in self._tasks:
            task.cancel()
        for instance in self._instances:
            instance.close()

    def _deadline(self, job: Job) -> float | None:
        timeout: int = self._policy.default_timeout_microseconds
        if self._policy.allow_timeout_override and 0 < job.timeout < timeout:
            timeout = job.timeout
        return time.monotonic() + timeout / 1e6 if timeout and self._is_batching else None

    def _take(self) -> None:
        """Put the foremost requests into batches to come, leaving out those given up by then."""
        for waiting in list(islice(self._queue, self._to_take)):
            if waiting.is_taken or not waiting.job.is_cancelled():
                waiting.is_taken = True
            else:
                self._queue.remove(waiting)
                waiting.end(_cancelled())

    async def _next(self) -> _Waiting:
        async with self._changed:
            while True:
                await self._changed.wait_for(lambda: bool(self._queue))
                waiting = self._queue.popleft()
                self._take()
                if waiting.is_expired:
                    waiting.end(_expired())
                elif self._is_batching and not waiting.is_taken and waiting.job.is_cancelled():
                    waiting.end(_cancelled())
                else:
                    self.running += 1
                    return waiting

    async def _serve(self, instance: Instance) -> None:
        while True:
            waiting = await self._next()
            problem: BaseException | None = None
            try:
                await self._execute(instance, waiting.job)
            except Refusal as error:
                problem = error
            except Exception as error:  # noqa: BLE001 # the client gets it
                traceback.print_exc(file=sys.stderr)
                problem = internal(f"FakeTriton failed: {error!r}")
            self.running -= 1
            waiting.end(problem)
            async with self._changed:
                self._changed.notify_all()

    async def _execute(self, instance: Instance, job: Job) -> None:
        await job.reach("running")
        request = pb_utils.InferenceRequest(
            inputs=[pb_utils.tensor_of(entry) for entry in job.inputs],
            requested=job.requested,
            request_id=job.request_id,
            parameters=job.parameters,
            timeout=job.timeout,
            is_cancelled=job.is_cancelled,
        )
        await job.deliver(await instance.execute(request))

    async def _reject_expired(self) -> None:
        while True:
            await asyncio.sleep(_REJECTING)
            for waiting in [each for each in self._queue if each.is_expired]:
                self._queue.remove(waiting)
                waiting.end(_expired())


def _expired() -> Refusal:
    return Refusal("UNAVAILABLE", "Request timeout expired")


def _cancelled() -> Refusal:
    return Refusal("CANCELLED", "Request cancelled")
