"""What the server does, whichever protocol a call comes by."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .checks import Checks
from .garbling import garble
from .incidents import Course, Incidents
from .models import Model
from .refusals import Refusal, internal, invalid
from .regions import References, RegionTable
from .repository import LATEST, Repository
from .scheduling import Job
from .tensors import Answer, Input, Output, Requested
from .versions import Release

_POLL = 0.005  # seconds

EXTENSIONS = (
    *("classification", "sequence", "model_repository", "model_repository(unload_dependents)"),
    *("schedule_policy", "model_configuration", "system_shared_memory", "cuda_shared_memory"),
    *("binary_tensor_data", "parameters", "statistics", "trace", "logging"),
)

CATEGORIES = {
    "ServerLive": "health",
    "ServerReady": "health",
    "ModelReady": "health",
    "ServerMetadata": "metadata",
    "ModelMetadata": "metadata",
    "ModelConfig": "model-config",
    "ModelStatistics": "statistics",
    "ModelInfer": "inference",
    "ModelStreamInfer": "inference",
    "RepositoryIndex": "model-repository",
    "RepositoryModelLoad": "model-repository",
    "RepositoryModelUnload": "model-repository",
} | {
    f"{kind}SharedMemory{call}": "shared-memory"
    for kind in ("System", "Cuda")
    for call in ("Register", "Unregister", "Status")
}
"""What may be restricted, by the names of Triton's --grpc-restricted-protocol."""


@dataclass(eq=False)
class InferCall:
    """An infer request on its way.

    Attributes:
        references: The regions it refers to; let go of when it has ended.
        drop: Cuts the connection it came by.
        answered: Names of the outputs that the answer has.
        is_cancelled: Whether its client has given it up.
    """

    references: References
    course: Course
    drop: Callable[[], None]
    inputs: list[Input] = field(default_factory=list[Input])
    outputs: list[Requested] = field(default_factory=list[Requested])
    answered: list[str] = field(default_factory=list[str])
    request_id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict[str, Any])
    timeout: int = 0
    is_cancelled: bool = False


class Service:
    """A server's state and what can be asked of it.

    Attributes:
        name: What it says its name is.
        version: And its version.
        is_exiting: Whether it was asked to end.
    """

    def __init__(
        self,
        *,
        name: str,
        version: str,
        release: Release,
        repository: Repository,
        regions: RegionTable,
        restricted: Mapping[str, tuple[str, str]],
    ) -> None:
        self.name = name
        self.version = version
        self.release = release
        self.repository = repository
        self.regions = regions
        self.incidents = Incidents()
        self._restricted = restricted
        self._infers: set[InferCall] = set()

    @property
    def is_exiting(self) -> bool:
        return self.repository.is_exiting

    def restriction_of(self, method: str) -> tuple[str, str] | None:
        """Return the key and the value that a call must show, or None."""
        return self._restricted.get(CATEGORIES[method])

    def check_live(self) -> None:
        """Raise Refusal if the server ends."""
        if self.is_exiting:
            raise Refusal("UNAVAILABLE", "Server exiting")

    def check_ready(self) -> None:
        """Raise Refusal if the server ends, as calls about models have it."""
        if self.is_exiting:
            raise Refusal("UNAVAILABLE", "Server not ready")

    def is_model_ready(self, name: str, version: str) -> bool:
        """Tell whether a model takes requests.

        Raises:
            Refusal: The server ends, or the version is none.
        """
        number = version_of(version)
        self.check_ready()
        try:
            self.repository.find(name, number)
        except Refusal:
            return False
        return True

    def model(self, name: str, version: str) -> Model:
        """Return a model.

        Raises:
            Refusal: There is none.
        """
        return self.repository.find(name, version_of(version))

    def statistics(self, name: str, version: str) -> list[dict[str, Any]]:
        """Return what a model counted, or all if the name is empty.

        Raises:
            Refusal: There is no such model.
        """
        number = version_of(version)
        if not name:
            models: Sequence[Model] = self.repository.loaded()
        else:
            models = [model for model in self.repository.loaded() if model.config.name == name]
            if not models:
                raise invalid(f"requested model '{name}' is not available")
            if number != LATEST and number not in models[0].config.versions:
                raise invalid(f"requested model version is not available for model '{name}'")
        return [model.statistics.to_json(model.config) for model in models]

    def index(self, *, only_ready: bool) -> list[dict[str, str]]:
        """Return the repository index."""
        self.check_ready()
        return self.repository.index(only_ready=only_ready)

    def load(self, name: str) -> None:
        """Load a model, if clients may."""
        self.repository.check_control()
        self.repository.load(name)

    def unload(self, name: str) -> None:
        """Unload a model, if clients may."""
        self.repository.check_control()
        self.repository.unload(name)

    def check(self, model: Model, call: InferCall) -> None:
        """Check a request before it is queued.

        Raises:
            Refusal: The model cannot be run with it.
        """
        names = list(dict.fromkeys(output.name for output in call.outputs))
        call.answered = Checks(model.config, call.request_id).check(call.inputs, names)

    async def infer(self, model: Model, call: InferCall) -> Answer:
        """Run a checked request to its end, whether or not its client is still there.

        Raises:
            Refusal: It failed.
            Dropped: Nobody is to be answered.
        """
        self._infers.add(call)
        try:
            outputs = await self._run(model, call)
            answer = Answer(
                model.config.name, str(model.config.versions[-1]), call.request_id, outputs
            )
            await call.course.reach("answering", call.drop)
            for kind in call.course.garbage:
                garble(answer, kind)
            return answer
        finally:
            self._infers.discard(call)
            call.references.release()

    async def _run(self, model: Model, call: InferCall) -> list[Output]:
        delivered: list[Output] = []
        requested: dict[str, Requested] = {}
        for output in call.outputs:
            requested.setdefault(output.name, output)  # the first of a name counts

        async def deliver(outputs: list[Output]) -> None:
            await call.course.reach("writing", call.drop)
            for output in outputs:
                wanted = requested.get(output.name)
                if wanted is not None:
                    output.target, output.binary = wanted.target, wanted.binary
                _write(output)
                delivered.append(output)

        await model.run(
            Job(
                inputs=call.inputs,
                requested=call.answered,
                deliver=deliver,
                request_id=call.request_id,
                parameters=call.parameters,
                timeout=call.timeout,
                reach=partial(call.course.reach, drop=call.drop),
                is_cancelled=lambda: call.is_cancelled,
            )
        )
        return delivered

    async def finish(self) -> None:
        """Take no more infer requests, and wait for the end of those that are there.

        No fault befalls them any more, so that what is held ends, too.
        """
        self.repository.is_exiting = True
        self.incidents.clear()
        while self._infers:
            await asyncio.sleep(_POLL)


def version_of(version: str) -> int:
    """Return the number of a version, LATEST if it is empty.

    Raises:
        Refusal: It is no number.
    """
    if not version:
        return LATEST
    if not version.isdecimal() or int(version) == 0:
        raise invalid(
            f"failed to get model version from specified version string '{version}' (details:"
            " stol), version should be an integral value > 0"
        )
    return int(version)


def _write(output: Output) -> None:
    if output.target is None or not output.data:
        return
    if len(output.data) > output.target.byte_size:
        raise internal(
            f"shared memory size specified with the request for output '{output.name}'"
            f" ({output.target.byte_size} bytes) should be at least {len(output.data)} bytes to"
            " hold the results"
        )
    output.target.write(output.data)
