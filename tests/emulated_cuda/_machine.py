"""The emulated machine: its devices, its switches, and a record of who asked it for what."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator

TOTAL_MEMORY = 8 << 30
LIBRARY = "library"
ARRAYS = "arrays"


class Failure(Exception):
    """A call of the emulated CUDA ends with this error, named as CUDA names it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of the emulated CUDA.

    Attributes:
        name: the function, as ``"cudaMalloc"``.
        arguments: its arguments, as far as they are numbers.
        thread: ident of the calling thread.
        device: the device that was current in it.
        origin: ``"library"``, or ``"arrays"`` for what `emulated_cuda.arrays` calls itself.
    """

    name: str
    arguments: tuple[int | None, ...]
    thread: int
    device: int
    origin: str


@dataclasses.dataclass
class Device:
    """A GPU as this process sees it; the physical number is what all processes agree on."""

    physical: int
    total: int = TOTAL_MEMORY
    used: int = 0

    @property
    def uuid(self) -> bytes:
        # The server's side gives the same, see device_uuid in server/devices.c.
        return b"EMULATED-GPU-%03d" % self.physical


@dataclasses.dataclass
class Injected:
    """An error that calls of one function will meet."""

    function: str
    error: str
    times: int
    after: int


def _configured() -> list[int]:
    """Return the devices' physical numbers; the variables are those of the server's half."""
    if order := os.environ.get("EMUCUDA_ORDER"):
        return [int(number) for number in order.split(",")]
    return list(range(int(os.environ.get("EMUCUDA_DEVICES", "1"))))


class Machine:
    """All state of the emulation that is not memory and not streams."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)  # of buffers, files, streams, events: never again
        self.generation = 0
        self.reset()

    def reset(self) -> None:
        """Go back to one device, no switches thrown, nothing recorded."""
        self.generation += 1
        self.devices = [Device(number) for number in _configured()]
        self.has_driver = True
        self.raises_without_driver = False
        self.driver_version = self.runtime_version = 13040
        self.is_initialized = False
        self.peers: bool | set[tuple[int, int]] = False
        self.polls = 2
        self.host_total = TOTAL_MEMORY
        self.host_used = 0
        self.reuses_addresses = False
        self.fault: str | None = None
        self.injected: list[Injected] = []
        self.hooks: list[tuple[str, Callable[[], object]]] = []
        self.calls: deque[Call] = deque(maxlen=200_000)
        self.contexts: set[tuple[int, int, str]] = set()
        self.copied: Counter[tuple[str, str]] = Counter()

    # What belongs to the calling thread

    @property
    def current(self) -> int:
        """The calling thread's current device: 0 until it says otherwise, as with CUDA."""
        return self._own().device

    @current.setter
    def current(self, device: int) -> None:
        self._own().device = device

    @property
    def has_context(self) -> bool:
        """Whether the calling thread has a current context."""
        return self._own().has_context

    @property
    def thread_streams(self) -> dict[int, object]:
        """The calling thread's own default streams, by device."""
        return self._own().streams

    def _own(self) -> threading.local:
        if getattr(_local, "generation", None) != self.generation:
            _local.generation = self.generation
            _local.device = 0
            _local.has_context = False
            _local.streams = {}
            _local.last_error = "cudaSuccess"
        return _local

    def enter_context(self) -> None:
        """Note that the calling thread needs a context of its current device."""
        own = self._own()
        own.has_context = self.is_initialized = True
        self.contexts.add((threading.get_ident(), own.device, origin()))

    def remember_error(self, name: str) -> None:
        self._own().last_error = name

    def take_last_error(self) -> str:
        own = self._own()
        name, own.last_error = own.last_error, "cudaSuccess"
        return name

    # What every call goes through

    def record(self, name: str, arguments: tuple[object, ...]) -> None:
        numbers = tuple(_as_number(each) for each in arguments)
        self.calls.append(Call(name, numbers, threading.get_ident(), self.current, origin()))

    def raise_injected(self, name: str) -> None:
        """Let this call fail if a test wants it to."""
        for injected in self.injected:
            if injected.function != name or origin() != LIBRARY:
                continue
            if injected.after > 0:
                injected.after -= 1
            elif injected.times > 0:
                injected.times -= 1
                raise Failure(injected.error)

    def check_usable(self) -> None:
        """Raise what every call that needs a device gets where there is none."""
        if not self.has_driver or self.driver_version // 1000 < self.runtime_version // 1000:
            raise Failure("cudaErrorInsufficientDriver")
        if not self.devices:
            raise Failure("cudaErrorNoDevice")
        if self.fault is not None:
            raise Failure(self.fault)

    def device(self, ordinal: int) -> Device:
        if not 0 <= ordinal < len(self.devices):
            raise Failure("cudaErrorInvalidDevice")
        return self.devices[ordinal]

    def can_access_peer(self, device: int, peer: int) -> bool:
        if device == peer:
            return False
        return self.peers if isinstance(self.peers, bool) else (device, peer) in self.peers


machine = Machine()
_local = threading.local()


def origin() -> str:
    """Tell on whose behalf this thread calls."""
    return getattr(_local, "origin", LIBRARY)


@contextlib.contextmanager
def on_behalf_of(name: str) -> Iterator[None]:
    """Note calls in this block as those of somebody else than the library."""
    before = origin()
    _local.origin = name
    try:
        yield
    finally:
        _local.origin = before


def _as_number(value: object) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None
