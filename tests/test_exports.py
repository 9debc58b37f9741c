"""What is public, and what importing it does not do."""

from __future__ import annotations

import subprocess
import sys
import typing

import triton_zerocopy as tz

PUBLIC = [
    "AdoptedTensor",
    "CapacityError",
    "Client",
    "ClientClosed",
    "ClientStatistics",
    "CudaError",
    "DeviceArray",
    "ForkedClientError",
    "InferResult",
    "InferTimeout",
    "InferenceError",
    "InputError",
    "Lease",
    "LeaseReleased",
    "Model",
    "PoolClosed",
    "PoolError",
    "PoolExhausted",
    "PoolStatistics",
    "Reclaimed",
    "Region",
    "RegionBusy",
    "RegionClosed",
    "RegionError",
    "RegionTensor",
    "RegistrationError",
    "RetryPolicy",
    "ServerCannotSeeMemory",
    "ServerUnavailable",
    "SharedMemoryDisabled",
    "SslOptions",
    "TensorSpec",
    "WrongLoopError",
    "ZeroCopyError",
]


def test_the_public_names():
    assert sorted(tz.__all__) == PUBLIC
    visible = {name for name in vars(tz) if not name.startswith("_")} - {"annotations", "testing"}
    assert visible == set(PUBLIC)
    assert tz.__version__.count(".") == 2


def test_the_hints_of_public_classes_resolve():
    """FastAPI and pydantic ask for them."""
    for name in tz.__all__:
        typing.get_type_hints(getattr(tz, name))


def test_importing_starts_nothing():
    """No CUDA, no thread, no gRPC channel, no event loop."""
    code = """
import sys, threading
import triton_zerocopy
from triton_zerocopy import testing
assert not any(name.split(".")[0] in ("cuda", "torch", "cupy") for name in sys.modules)
assert threading.active_count() == 1, threading.enumerate()
"""
    subprocess.run([sys.executable, "-W", "error::DeprecationWarning", "-c", code], check=True)
