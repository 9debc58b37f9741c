"""How tests steer the emulated machine, and what they may ask it."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from . import _memory, _streams
from ._calls import handle_of
from ._lock import exclusive
from ._machine import LIBRARY, Call, Device, Injected, machine


@dataclasses.dataclass(frozen=True)
class Live:
    """What exists at the moment."""

    device: int
    pinned: int
    imported: int
    streams: int
    events: int


def live(origin: str | None = None) -> Live:
    """Count what exists, all of it or that of one origin (``"library"``, ``"arrays"``)."""
    with exclusive():
        kinds = Counter(
            {"host": "pinned", "imported": "imported"}.get(each.kind, "device")
            for each in _memory.allocations()
            if origin in (None, each.origin)
        )
        streams = sum(origin in (None, each) for each in _streams.registry.origins.values())
        events = sum(origin in (None, each.origin) for each in _streams.registry.events.values())
        return Live(kinds["device"], kinds["pinned"], kinds["imported"], streams, events)


def reset(*, check: bool = False) -> None:
    """Make a new machine, with one device and nothing on it.

    Args:
        check: fail if something is still there; it is removed nevertheless.
    """
    with exclusive():
        left = live()
        for allocation in _memory.allocations():
            _memory.free(allocation)
        _memory.release_addresses()
        _streams.registry.__init__()
        machine.reset()
    if check:
        assert left == Live(0, 0, 0, 0, 0), f"left on the emulated machine: {left}"


# The machine


def set_devices(devices: int | Iterable[int]) -> None:
    """Give the machine so many GPUs; or those with these physical numbers, in this order."""
    physical = range(devices) if isinstance(devices, int) else devices
    with exclusive():
        machine.devices = [Device(number) for number in physical]


def device_uuid(device: int) -> bytes:
    """Return the 16 bytes that all processes know a GPU by."""
    return machine.devices[device].uuid


def set_driver(*, present: bool, version: int = 13040, raises: bool = False) -> None:
    """Take the driver away, or give it a version; one older than the runtime will not do.

    Args:
        present: False as on a machine without NVIDIA's driver.
        version: as cudaDriverGetVersion says it.
        raises: without a driver, let the runtime's functions raise RuntimeError instead of
            returning an error: so did cuda-python before 12.9.
    """
    machine.has_driver, machine.driver_version = present, version
    machine.raises_without_driver = raises


def set_fault(error: str | None) -> None:
    """Let every call fail with this error from now on, as after a fault of a GPU; None heals it."""
    machine.fault = error


def set_peers(peers: bool | Iterable[tuple[int, int]]) -> None:
    """Say whether GPUs reach each other's memory: all of them, none, or pairs (device, peer)."""
    machine.peers = peers if isinstance(peers, bool) else set(peers)


def set_polls(polls: int) -> None:
    """Say how often a query answers "not ready" before the work is done. 2 at first."""
    machine.polls = polls


def reuse_addresses(reuses: bool = True) -> None:
    """Say whether an address comes back after it was freed, with another buffer id."""
    machine.reuses_addresses = reuses


def limit(device: int | str, byte_size: int) -> None:
    """Limit the memory of a GPU, or pinned memory (``"pinned"``)."""
    if device == "pinned":
        machine.host_total = byte_size
    else:
        machine.devices[int(device)].total = byte_size


@contextlib.contextmanager
def _injecting(injected: Injected) -> Iterator[Injected]:
    try:
        yield injected
    finally:
        with contextlib.suppress(ValueError):
            machine.injected.remove(injected)


def fail(
    function: str, error: str, *, times: int = 1, after: int = 0
) -> contextlib.AbstractContextManager[Injected]:
    """Let calls of the library fail, from now on, or to the end of the block it is used for.

    Args:
        function: its name, as ``"cudaMalloc"``.
        error: as ``"cudaErrorMemoryAllocation"``.
        times: how many calls fail; `times` of what it returns says how many still will.
        after: how many calls go well before.
    """
    injected = Injected(function, error, times, after)
    machine.injected.append(injected)
    return _injecting(injected)


@contextlib.contextmanager
def on_call(function: str, hook: Callable[[], object]) -> Iterator[None]:
    """Run something before each call of a function, in the calling thread."""
    entry = (function, hook)
    machine.hooks.append(entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            machine.hooks.remove(entry)


# What happened


def calls(name: str | None = None, *, origin: str | None = LIBRARY) -> list[Call]:
    """Return the calls so far, those of the library if nothing else is said."""
    return [
        each
        for each in list(machine.calls)
        if name in (None, each.name) and origin in (None, each.origin)
    ]


def forget_calls() -> None:
    """Begin counting calls, threads, contexts and bytes anew."""
    with exclusive():
        machine.calls.clear()
        machine.contexts.clear()
        machine.copied.clear()


def threads_used(*, origin: str | None = LIBRARY) -> set[int]:
    """Return the idents of the threads that called CUDA.

    The functions that only look up names or versions are not counted; all others are.
    """
    return {each.thread for each in calls(origin=origin)}


def contexts(*, origin: str | None = LIBRARY) -> set[tuple[int, int]]:
    """Return (thread ident, device) for all contexts that were made or used."""
    with exclusive():
        return {(t, d) for t, d, by in machine.contexts if origin in (None, by)}


def bytes_copied(kind: str | None = None, *, origin: str | None = LIBRARY) -> int:
    """Return how many bytes copies were asked for.

    Args:
        kind: ``"H2D"``, ``"D2H"``, ``"D2D"`` (on one GPU), ``"P2P"`` (between GPUs) or
            ``"H2H"``; None for all. Managed memory counts as the GPU's.
        origin: whose; None for all.
    """
    with exclusive():
        return sum(
            count
            for (by, direction), count in machine.copied.items()
            if kind in (None, direction) and origin in (None, by)
        )


# Work


def launch(stream: object, function: Callable[[], object]) -> None:
    """Queue a function as a kernel on a stream; it runs when the stream gets there."""
    with exclusive():
        _streams.find_stream(handle_of(stream)).push(function)


def hold(stream: object) -> _streams.Gate:
    """Queue work that does not end before the gate is opened. Also a context manager."""
    gate = _streams.Gate()
    with exclusive():
        _streams.find_stream(handle_of(stream)).push(gate=gate)
    return gate


def settle() -> None:
    """Run all that was queued, but for what is behind a closed gate."""
    with exclusive():
        _streams.settle()


def is_idle() -> bool:
    """Tell whether all that was queued has run."""
    with exclusive():
        return _streams.is_idle()


# Memory


def host_view(address: int, byte_size: int) -> np.ndarray:
    """Return a view of memory of any kind, as it is now; nothing waits and nothing runs."""
    with exclusive():
        allocation = _memory.find(address)
        assert allocation is not None, f"{address:#x} is in no allocation"
        assert address + byte_size <= allocation.address + allocation.size
        visible = allocation.visible + address - allocation.address
    if byte_size == 0:
        return np.empty(0, np.uint8)
    return np.frombuffer((ctypes.c_uint8 * byte_size).from_address(visible), np.uint8)


def allocate(byte_size: int, kind: str, device: int = 0) -> int:
    """Allocate memory that the runtime functions here cannot make.

    Args:
        byte_size: bytes.
        kind: ``"managed"`` (cudaMallocManaged), ``"pool"`` (cudaMallocAsync) or ``"vmm"``
            (cuMemMap, as PyTorch's expandable segments). None of them can be exported.
        device: ordinal of the GPU.

    Returns:
        The address; `release` frees it, cudaFree does so for managed and pool memory, too.
    """
    assert kind in ("device", "managed", "pool", "vmm"), kind
    with exclusive():
        return _memory.allocate(byte_size, device, kind).address


def release(address: int) -> None:
    """Free memory of any kind at once, without waiting for the work that uses it."""
    with exclusive():
        allocation = _memory.find(address)
        assert allocation is not None, f"{address:#x} is in no allocation"
        _memory.free(allocation)
