"""CUDA without a GPU: as much of it as the library and the server need.

`install()` puts `emulated_cuda.runtime` and `emulated_cuda.driver` in the place of cuda-python;
`server_environment()` makes a real tritonserver use the other half, which is written in C. Both
share "device memory" through files in /dev/shm.

The emulation is stricter than a GPU where that finds mistakes: nothing in a stream happens before
it must, memory that was freed is never handed out again, and device memory cannot be touched by
the host.

What it cannot show: real overlap of work and speed; caches and what two GPUs or two processes see
of each other's unfinished work; memory whose exporter is gone (here its bytes stay); registered
host memory, mapped and write-combined memory, pinned memory that is not portable; contexts of the
driver API, MIG, MPS, graphs and capture; kernels that are not Python.
"""

from __future__ import annotations

from . import driver, runtime
from ._control import (
    Live,
    allocate,
    bytes_copied,
    calls,
    contexts,
    device_uuid,
    fail,
    forget_calls,
    hold,
    host_view,
    is_idle,
    launch,
    limit,
    live,
    on_call,
    release,
    reset,
    reuse_addresses,
    set_devices,
    set_driver,
    set_fault,
    set_peers,
    set_polls,
    settle,
    threads_used,
)
from ._install import hide, install, uninstall
from ._machine import ARRAYS, LIBRARY, Call, on_behalf_of
from ._mapping import sweep
from ._memory import GRANULARITY
from ._streams import Gate

__all__ = [
    "ARRAYS",
    "GRANULARITY",
    "LIBRARY",
    "Call",
    "Gate",
    "Live",
    "allocate",
    "bytes_copied",
    "calls",
    "contexts",
    "device_uuid",
    "driver",
    "fail",
    "forget_calls",
    "hide",
    "hold",
    "host_view",
    "install",
    "is_idle",
    "launch",
    "limit",
    "live",
    "on_behalf_of",
    "on_call",
    "release",
    "reset",
    "reuse_addresses",
    "runtime",
    "set_devices",
    "set_driver",
    "set_fault",
    "set_peers",
    "set_polls",
    "settle",
    "sweep",
    "threads_used",
    "uninstall",
]
