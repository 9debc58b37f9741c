"""A real Triton server for tests, without Docker and without a GPU.

from triton_zerocopy.testing import PythonModel, TritonServer

def double(INPUT0):
    return INPUT0 * 2

MODEL = PythonModel(
    double, inputs={"INPUT0": ("FP32", [-1])}, outputs={"OUTPUT0": ("FP32", [-1])}
)

async with TritonServer(models={"double": MODEL}) as server:
    ...  # server.grpc_url, server.http_url
"""

from __future__ import annotations

from ._errors import (
    InterpreterNotFound,
    ModelLoadError,
    NotEnoughSpace,
    PortInUse,
    ProvisionError,
    ServerError,
    ServerExited,
    ServerNotFound,
    StartupTimeout,
    UnsupportedPlatform,
)
from ._fake.handle import FakeState, FakeTriton
from ._faults import Fault
from ._models import PythonModel, RawModel, ServableModel
from ._server import TritonServer

__all__ = [
    "FakeState",
    "FakeTriton",
    "Fault",
    "InterpreterNotFound",
    "ModelLoadError",
    "NotEnoughSpace",
    "PortInUse",
    "ProvisionError",
    "PythonModel",
    "RawModel",
    "ServableModel",
    "ServerError",
    "ServerExited",
    "ServerNotFound",
    "StartupTimeout",
    "TritonServer",
    "UnsupportedPlatform",
]
