"""What the tests of `triton_zerocopy.testing` share."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient

from triton_zerocopy.testing import TritonServer

Infer = Callable[..., dict[str, Any]]


def leftovers() -> set[str]:
    """Return what a server of this process could leave behind: processes and files."""
    found = {str(path) for path in Path("/dev/shm").glob(f"triton_zerocopy_server_{os.getpid()}_*")}
    found |= {
        str(path) for path in Path(tempfile.gettempdir()).glob(f"triton_zerocopy-{os.getpid()}-*")
    }
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, ValueError):
            continue
        ours = fields[1] == str(os.getpid()) or f"triton_zerocopy-{os.getpid()}-" in command
        if ours and fields[0] not in ("Z", "X"):
            found.add(f"process {entry.name}: {command}")
    return found


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """Fail a test that leaves a process, shared memory or a temporary directory behind."""
    before = leftovers()
    yield
    assert leftovers() - before == set()


@pytest.fixture
def infer() -> Infer:
    """A function that calls a model through tritonclient and returns its outputs."""

    def call(server: TritonServer, model: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        with grpcclient.InferenceServerClient(server.grpc_url) as client:
            result = client.infer(model, [infer_input(*item) for item in inputs.items()])
            names = [output.name for output in result.get_response().outputs]
            return {name: result.as_numpy(name) for name in names}

    return call


def infer_input(name: str, array: np.ndarray[Any, Any]) -> grpcclient.InferInput:
    """Return tritonclient's input for an array."""
    datatype = DATATYPES[array.dtype.name]
    tensor = grpcclient.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def wait_until(condition: Callable[[], object], *, timeout: float = 20.0) -> None:
    """Wait for a state that another process or thread brings about."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


DATATYPES = {
    "bool": "BOOL",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "float16": "FP16",
    "bfloat16": "BF16",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}
