"""Streams that do nothing until they must.

What is put into a stream stays there until something that CUDA defines as synchronising lets it
run. So a forgotten synchronise does not go unnoticed as it would on a fast GPU: the bytes are
not there. An operation runs after all before it in its stream, and after what it depends on in
others; CUDA promises no more than that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Self

from ._lock import announce_change, die_later, exclusive, wait_for_change
from ._machine import Failure, machine

LEGACY, PER_THREAD = 1, 2
_FIRST_HANDLE = 0x5EED0000


class Gate:
    """Work that goes on until a test ends it, as a kernel that takes long.

    Synchronising behind a closed gate blocks, and queries answer "not ready".
    """

    def __init__(self) -> None:
        self.is_open = False

    def open(self) -> None:
        """Let the work end."""
        with exclusive():
            self.is_open = True
            announce_change()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.open()


class Operation:
    """Something in a stream."""

    def __init__(
        self,
        stream: Stream,
        function: Callable[[], object] | None,
        after: Iterable[Operation],
        gate: Gate | None = None,
    ) -> None:
        self.stream = stream
        self.function = function
        self.after = [each for each in after if not each.is_done]
        self.gate = gate
        self.is_done = False


class Stream:
    """A queue of operations of one GPU."""

    def __init__(self, handle: int, device: int, *, is_blocking: bool) -> None:
        self.handle = handle
        self.device = device
        self.is_blocking = is_blocking
        self.is_own = handle == PER_THREAD
        self.polls = 0
        self.operations: deque[Operation] = deque()

    @property
    def last(self) -> list[Operation]:
        """The last operation that is still to run, if there is one."""
        return [self.operations[-1]] if self.operations else []

    def push(
        self,
        function: Callable[[], object] | None = None,
        *,
        after: Iterable[Operation] = (),
        gate: Gate | None = None,
    ) -> Operation:
        """Queue an operation.

        The rule of the legacy default stream: it waits for all blocking streams of its device,
        and what comes later in those waits for it.
        """
        after = list(after)
        if self.handle == LEGACY:
            for other in _streams_of(self.device):
                after += other.last if other.is_blocking else []
        elif self.is_blocking:
            after += legacy(self.device).last
        operation = Operation(self, function, after, gate)
        self.operations.append(operation)
        self.polls = 0
        return operation


class Event:
    """A point in a stream."""

    def __init__(self, handle: int, device: int, origin: str) -> None:
        self.handle = handle
        self.device = device
        self.origin = origin
        self.operation: Operation | None = None
        self.polls = 0

    @property
    def pending(self) -> list[Operation]:
        """The operation that it waits for, unless that has run."""
        operation = self.operation
        return [operation] if operation is not None and not operation.is_done else []


class Registry:
    """All streams and events by their handles, which are never used twice."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.events: dict[int, Event] = {}
        self.legacy: dict[int, Stream] = {}
        self.others: list[Stream] = []  # per-thread ones, and destroyed ones with work left
        self.origins: dict[int, str] = {}

    def new_handle(self) -> int:
        return _FIRST_HANDLE + 16 * next(machine.numbers)


registry = Registry()


def legacy(device: int) -> Stream:
    """Return the legacy default stream of a GPU."""
    if device not in registry.legacy:
        registry.legacy[device] = Stream(LEGACY, device, is_blocking=False)
    return registry.legacy[device]


def find_stream(handle: int) -> Stream:
    """Return the stream of a handle, as the calling thread sees it."""
    if handle in (0, LEGACY):
        return legacy(machine.current)
    if handle == PER_THREAD:
        own: dict[int, Any] = machine.thread_streams
        if machine.current not in own:
            own[machine.current] = Stream(PER_THREAD, machine.current, is_blocking=True)
            registry.others.append(own[machine.current])
        return own[machine.current]
    if handle not in registry.streams:
        # With a real GPU, a destroyed stream's handle may do anything.
        raise Failure("cudaErrorInvalidResourceHandle")
    return registry.streams[handle]


def create_stream(device: int, *, is_blocking: bool, origin: str) -> int:
    handle = registry.new_handle()
    registry.streams[handle] = Stream(handle, device, is_blocking=is_blocking)
    registry.origins[handle] = origin
    return handle


def destroy_stream(handle: int) -> None:
    """Forget a stream; what is in it still runs, and its handle is an error from now on."""
    if handle not in registry.streams:
        raise Failure("cudaErrorInvalidResourceHandle")
    stream = registry.streams.pop(handle)
    registry.origins.pop(handle)
    registry.others = [each for each in registry.others if each.operations or each.is_own]
    if stream.operations:
        registry.others.append(stream)


def find_event(handle: int) -> Event:
    if handle not in registry.events:
        raise Failure("cudaErrorInvalidResourceHandle")
    return registry.events[handle]


def wait_for(operations: Iterable[Operation]) -> None:
    """Run what has to run, and return when these have."""
    operations = list(operations)
    while not all(_advance(each) for each in operations):
        wait_for_change()
    if machine.fault is not None:
        raise Failure(machine.fault)


def poll(target: Stream | Event, pending: list[Operation]) -> None:
    """Answer a query: a few times "not ready" if there is work left, then it runs."""
    if not pending:
        return
    target.polls += 1
    if target.polls <= machine.polls or not _advance(pending[0]):
        raise Failure("cudaErrorNotReady")
    if machine.fault is not None:
        raise Failure(machine.fault)


def wait_for_device(device: int) -> None:
    """Run everything on a GPU."""
    wait_for([each for stream in _streams_of(device) for each in stream.last])


def settle() -> None:
    """Run everything that no closed gate is in the way of."""
    for stream in _all_streams():
        for operation in stream.last:
            _advance(operation)


def is_idle() -> bool:
    """Tell whether nothing is left in any stream."""
    return not any(stream.operations for stream in _all_streams())


def _all_streams() -> list[Stream]:
    return [*registry.streams.values(), *registry.legacy.values(), *registry.others]


def _streams_of(device: int) -> list[Stream]:
    return [stream for stream in _all_streams() if stream.device == device]


def _advance(operation: Operation) -> bool:
    """Run everything up to an operation; False if a closed gate is in the way."""
    queue = operation.stream.operations
    while not operation.is_done:
        first = queue[0]
        if not all(_advance(each) for each in first.after):
            return False
        if first.gate is not None and not first.gate.is_open:
            return False
        queue.popleft()
        if first.function is not None:
            try:
                first.function()
            except Failure as failure:
                # As on a GPU: what went wrong there shows in some later call.
                machine.fault = failure.name
        first.is_done = True
        # Its end may run a finalizer, so not under the lock.
        die_later(first.function)
        first.function = None
        first.after = []
    return True
