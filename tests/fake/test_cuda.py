"""CUDA memory, by a module that plays the CUDA runtime."""

from __future__ import annotations

import base64

import pytest
from conformance.raw import Http, floats, output, placed, strings, tensor, wait_until
from models import MODELS

from triton_zerocopy.testing import FakeTriton, Fault

X, Y = floats(1, 2, 3, 4), floats(2, 3, 4, 5)


@pytest.fixture(scope="module")
def gpu():
    models = {name: MODELS[name] for name in ("fixed", "shout") if name in MODELS}
    with FakeTriton(models, cuda="fake.cuda_by_files") as server:
        yield server


@pytest.fixture
def asked(gpu):
    yield gpu
    gpu.clear()
    assert not gpu.state().registered
    assert not gpu.state().mapped


def handle_of(memory):
    return memory.key.lstrip("/").encode().ljust(64, b"\0")


def register(rpc, name, memory, byte_size=8192):
    rpc(
        "CudaSharedMemoryRegister",
        name=name,
        raw_handle=handle_of(memory),
        device_id=0,
        byte_size=byte_size,
    )


def test_tensors_on_a_device(gpu, rpc, memory):
    register(rpc, "c", memory)
    (entry,) = rpc("CudaSharedMemoryStatus", name="c").regions.values()
    assert (entry.name, entry.device_id, entry.byte_size) == ("c", 0, 8192)
    text = "The region named 'c' is registered as CUDA shared memory, not system shared memory"
    assert rpc.refusal("SystemSharedMemoryStatus", name="c") == ("NOT_FOUND", text)
    memory.write(X, 256)
    rpc.infer(inputs=[tensor(at=("c", 16, 256))], outputs=[output(at=("c", 16, 512))])
    assert memory.read(16, 512) == Y
    assert rpc.infer_refusal(inputs=[tensor(at=("c", 16, 8192))])[1].startswith("Invalid offset")
    rpc("SystemSharedMemoryUnregister", name="c")
    assert gpu.state().registered == ["c"], "that is another kind"
    rpc("CudaSharedMemoryUnregister", name="c")


def test_over_http(gpu, rpc, memory):
    with Http(gpu.http_url) as web:
        body = {
            "raw_handle": {"b64": base64.b64encode(handle_of(memory)).decode()},
            "device_id": 0,
            "byte_size": 4096,
        }
        assert web("POST", "/v2/cudasharedmemory/region/c/register", body)[0] == 200
        assert web.get("/v2/cudasharedmemory/status") == [
            {"name": "c", "device_id": 0, "byte_size": 4096}
        ]
        memory.write(X)
        one = {"name": "INPUT0", "datatype": "FP32", "shape": [4], "parameters": placed("c")}
        outputs = [{"name": "OUTPUT0", "parameters": placed("c", 16, 64)}]
        web.infer({"inputs": [one], "outputs": outputs})
        assert memory.read(16, 64) == Y
        assert web("POST", "/v2/cudasharedmemory/region/c/unregister")[0] == 200


def test_handles_that_cannot_be_opened(gpu, rpc, memory):
    for handle, device in ((b"no such file", 0), (b"", 0), (handle_of(memory), 1)):
        fields = {"raw_handle": handle, "device_id": device, "byte_size": 8}
        assert rpc.refusal("CudaSharedMemoryRegister", name="c", **fields) == (
            "INVALID_ARGUMENT",
            "failed to register shared memory region: invalid args",
        )
    assert "failed to open CUDA IPC handle" in gpu.log_text()


def test_it_is_in_use_and_written_late(gpu, rpc, memory):
    register(rpc, "c", memory)
    memory.write(X)
    gpu.inject(Fault("ModelInfer", before="writing", hold=True))
    call = rpc.begin_infer(inputs=[tensor(at=("c", 16, 0))], outputs=[output(at=("c", 16, 64))])
    wait_until(lambda: gpu.state().held == 1)
    call.cancel()
    text = "Cannot unregister shared memory region 'c', it is currently in use."
    assert rpc.refusal("CudaSharedMemoryUnregister", name="c") == ("INTERNAL", text)
    assert rpc.refusal("CudaSharedMemoryUnregister", name="")[1].startswith(
        "Failed to unregister the following cuda shared memory regions: c ,"
    )
    gpu.release()
    wait_until(lambda: not gpu.state().in_use)
    assert memory.read(16, 64) == Y
    rpc("CudaSharedMemoryUnregister", name="c")


@pytest.mark.skipif("shout" not in MODELS, reason="the models have no strings here")
def test_strings_on_a_device_are_not_counted_before(rpc, memory):
    """Only the backend looks at them."""
    register(rpc, "c", memory)
    data = strings(b"a") + b"\xff\0\0\0"
    memory.write(data)
    text = tensor("TEXT", "BYTES", (2, 1), at=("c", len(data), 0))
    assert rpc.infer_refusal("shout", [text])[1].startswith("incomplete string data")
    rpc("CudaSharedMemoryUnregister", name="c")
