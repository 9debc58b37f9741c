"""An asyncio client for NVIDIA Triton in which tensors never travel.

See `Client`. Everything public is here and in `triton_zerocopy.testing`; other modules are
private.
"""

from __future__ import annotations

from ._adoption import AdoptedTensor
from ._client import Client, ClientStatistics
from ._cuda.arrays import DeviceArray
from ._errors import (
    CapacityError,
    ClientClosed,
    CudaError,
    ForkedClientError,
    InferenceError,
    InferTimeout,
    InputError,
    LeaseReleased,
    PoolClosed,
    PoolError,
    PoolExhausted,
    RegionBusy,
    RegionClosed,
    RegionError,
    RegistrationError,
    ServerCannotSeeMemory,
    ServerUnavailable,
    SharedMemoryDisabled,
    WrongLoopError,
    ZeroCopyError,
)
from ._lease import Lease
from ._model import Model
from ._reaper import Reclaimed
from ._regions.base import Region, RegionTensor
from ._results import InferResult
from ._retry import RetryPolicy
from ._slot_states import PoolStatistics
from ._specs import TensorSpec
from ._urls import SslOptions

__all__ = [
    # Using a server
    "Client",
    "ClientStatistics",
    "InferResult",
    "Lease",
    "Model",
    "PoolStatistics",
    "Reclaimed",
    "RetryPolicy",
    "SslOptions",
    "TensorSpec",
    # Memory of one's own
    "AdoptedTensor",
    "DeviceArray",
    "Region",
    "RegionTensor",
    # Errors
    "CapacityError",
    "ClientClosed",
    "CudaError",
    "ForkedClientError",
    "InferTimeout",
    "InferenceError",
    "InputError",
    "LeaseReleased",
    "PoolClosed",
    "PoolError",
    "PoolExhausted",
    "RegionBusy",
    "RegionClosed",
    "RegionError",
    "RegistrationError",
    "ServerCannotSeeMemory",
    "ServerUnavailable",
    "SharedMemoryDisabled",
    "WrongLoopError",
    "ZeroCopyError",
]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("triton-zerocopy")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
