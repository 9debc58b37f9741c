"""The GPUs that this process uses: one `Device` for each, whoever asks."""

from __future__ import annotations

import atexit
import os
import threading

from . import cudart
from .device import Device

_devices: dict[int, Device] = {}
_running: set[Device] = set()
"""Whose threads are there: also one that nobody uses any more and that is giving back what it has
of CUDA. The process does not end under it."""

_lock = threading.Lock()


def open_device(device_id: int) -> Device:
    """Return a device, for a user that calls ``let_go`` at the end. Blocking at the first time.

    Raises:
        CudaError: this process cannot use that GPU; the message says why.
    """
    with _lock:
        device = _devices.get(device_id)
        is_there = device is not None and device.join()
    if device is None or not is_there:
        cudart.check_available(device_id)
        device = _joined(device_id)
    device.facts  # noqa: B018 # started by another thread, maybe not through yet
    return device


def _joined(device_id: int) -> Device:
    with _lock:
        device = _devices.get(device_id)
        if device is not None and device.join():
            return device
        fresh = _devices[device_id] = Device(device_id, _ended)
        fresh.join()
        _running.add(fresh)
    fresh.start()
    return fresh


def _ended(device: Device) -> None:
    with _lock:
        _running.discard(device)
        if _devices.get(device.id) is device:
            del _devices[device.id]


def _stop_all() -> None:
    for device in list(_running):
        device.stop()


atexit.register(_stop_all)


def _start_over() -> None:
    """A forked child has none of these threads; its parent's devices are not its own."""
    global _lock  # noqa: PLW0603 # another thread may have held it
    _lock = threading.Lock()
    _devices.clear()
    _running.clear()


os.register_at_fork(after_in_child=_start_over)
