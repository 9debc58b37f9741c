"""A real server uses emulated GPUs, as the client's side sees them."""

from __future__ import annotations

import base64
import contextlib
import time

import emulated_cuda as emulated
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from emulated_cuda import runtime as rt
from emulated_cuda.asserting import exported, ok
from emulated_cuda.server import CudaServer
from models import MODELS
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.once

SIZE = 4 << 20
INPUT, OUTPUT = 4224, 8448  # offsets that are no multiples of a page
GUARD = 0xA5


@contextlib.contextmanager
def region(server, name="region", *, device=0, size=SIZE):
    """Memory of a GPU, registered at the server, full of guard bytes."""
    ok(rt.cudaSetDevice(device))
    address = ok(rt.cudaMalloc(size))
    emulated.host_view(address, size)[:] = GUARD
    handle = base64.b64encode(exported(address))
    try:
        with grpcclient.InferenceServerClient(server.grpc_url) as client:
            client.register_cuda_shared_memory(name, handle, device, size)
            try:
                yield client, address
            finally:
                unregister(client, name)
    finally:
        ok(rt.cudaFree(address))
        ok(rt.cudaSetDevice(0))


def unregister(client, name):
    """Unregister a region; the server may answer a call a moment before it lets go of it."""
    deadline = time.monotonic() + 10
    while True:
        try:
            client.unregister_cuda_shared_memory(name)
        except InferenceServerException as error:
            assert "currently in use" in str(error)
            assert time.monotonic() < deadline
        else:
            return


def infer(client, model, source=("region", INPUT), target=("region", OUTPUT)):
    tensor = grpcclient.InferInput("INPUT0", [4], "FP32")
    tensor.set_shared_memory(source[0], 16, offset=source[1])
    output = grpcclient.InferRequestedOutput("OUTPUT0")
    output.set_shared_memory(target[0], 16, offset=target[1])
    client.infer(model, [tensor], outputs=[output])


def put(address, values):
    emulated.host_view(address, 16)[:] = np.array(values, np.float32).view(np.uint8)


def floats(address):
    return emulated.host_view(address, 16).view(np.float32).tolist()


@pytest.mark.parametrize(("model", "added"), [("fixed", 1), ("on_gpu", 1), ("chain", 2)])
def test_a_model_reads_and_writes_the_memory_of_a_gpu(model, added, cuda_server):
    with region(cuda_server) as (client, address):
        assert cuda_server.memory.live_ipc() == 1
        assert set(cuda_server.regions()) == {"region"}
        put(address + INPUT, [1, 2, 3, 4])
        infer(client, model)
        assert floats(address + OUTPUT) == [1 + added, 2 + added, 3 + added, 4 + added]
        others = np.ones(SIZE, bool)
        others[INPUT : INPUT + 16] = others[OUTPUT : OUTPUT + 16] = False
        assert (emulated.host_view(address, SIZE)[others] == GUARD).all()
    assert cuda_server.memory.live_ipc() == 0


def test_a_small_allocation_is_not_where_its_handle_leads(cuda_server):
    """The server sees the beginning of the block, so only the first one is found."""
    before = ok(rt.cudaMalloc(100))
    with region(cuda_server, size=64) as (client, address):
        put(before, [0, 0, 0, 0])
        put(address, [1, 2, 3, 4])
        infer(client, "fixed", ("region", 0), ("region", 32))
        assert floats(before + 32) == [1, 1, 1, 1]
    ok(rt.cudaFree(before))


@pytest.mark.parametrize(("source", "target"), [(0, 1), (1, 0), (1, 1)])
def test_regions_on_two_gpus(source, target, two_gpu_server):
    with (
        region(two_gpu_server, "source", device=source) as (client, first),
        region(two_gpu_server, "target", device=target) as (_, second),
    ):
        put(first, [1, 2, 3, 4])
        infer(client, "fixed", ("source", 0), ("target", 0))
        assert floats(second) == [2, 3, 4, 5]
        assert two_gpu_server.regions()["source"]["device_id"] == source


def test_a_server_may_see_gpus_in_another_order(emulated_library, tmp_path, emulation):
    emulation.set_devices(2)
    server = CudaServer(
        {"fixed": MODELS["fixed"]},
        library=emulated_library,
        directory=tmp_path,
        devices=2,
        order=[1, 0],
    )
    with server:
        with pytest.raises(InferenceServerException, match="failed to register"):
            with region(server, device=0):
                pass
        emulation.set_devices([1, 0])
        with region(server, device=0) as (client, address):
            put(address + INPUT, [1, 2, 3, 4])
            infer(client, "fixed")
            assert floats(address + OUTPUT) == [2, 3, 4, 5]
        server.kill()
    emulation.sweep()
