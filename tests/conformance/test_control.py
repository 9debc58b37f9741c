"""Servers with other options: models that are controlled, calls that are restricted, an end."""

from __future__ import annotations

import http.client

import pytest
from models import MODELS
from models import gate as wait_at_gate

from triton_zerocopy.testing import FakeTriton, PythonModel, TritonServer

from .conftest import VERSION
from .raw import Gate, Grpc, Refused, floats, output, tensor, wait_until

X = floats(1, 2, 3, 4)
HEADER = "triton-grpc-protocol-admin"
SECRET = ((HEADER, "sesame"),)


OWN = {
    "fixed": MODELS["fixed"],
    "gate": MODELS["gate"],
    "patient": PythonModel(
        wait_at_gate,
        inputs={"INPUT0": ("FP32", [4]), "GATE": ("INT64", [1])},
        outputs={"OUTPUT0": ("FP32", [4])},
        max_batch_size=1,
        config="""
dynamic_batching {
  default_queue_policy {
    allow_timeout_override: true
    default_timeout_microseconds: 60000000
    max_queue_size: 2
  }
}
""",
    ),
}


@pytest.fixture(scope="module", params=["real", "fake"])
def own(request):
    """A server that is controlled and restricted."""
    if request.param == "real":
        server = TritonServer(
            OWN,
            args=[
                "--model-control-mode=explicit",
                "--load-model=*",
                "--grpc-restricted-protocol=shared-memory,statistics:admin=sesame",
                "--http-restricted-api=shared-memory,statistics:admin=sesame",
            ],
        )
    else:
        restricted = dict.fromkeys(["shared-memory", "statistics"], ("admin", "sesame"))
        server = FakeTriton(OWN, explicit_load=list(OWN), restricted=restricted)
    with server:
        if server.version != VERSION:
            pytest.skip(f"the real server here is {server.version}")
        yield server
        server.kill()


@pytest.fixture
def asked(own):
    return own


def test_restricted_calls_need_their_header(rpc, web):
    text = f"This protocol is restricted, expecting header '{HEADER}'"
    for call in ("SystemSharedMemoryStatus", "CudaSharedMemoryStatus", "ModelStatistics"):
        assert rpc.refusal(call) == ("UNAVAILABLE", text)
        assert rpc.refusal(call, metadata=((HEADER, "wrong"),)) == ("UNAVAILABLE", text)
        rpc(call, metadata=SECRET)
    text = "This API is restricted, expecting header 'admin'"
    path = "/v2/systemsharedmemory/status"
    assert web.refusal("GET", path) == (403, text)
    assert web("GET", path, admin="wrong")[0] == 403
    assert web("GET", path, admin="sesame")[0] == 200
    assert web.refusal("GET", "/v2/models/stats") == (403, text)
    rpc.infer(inputs=[tensor(data=X)])


def begin_at(rpc, model, gate, **options):
    inputs = [tensor(shape=(1, 4), data=X), gate.input | {"shape": [1, 1]}]
    return rpc.begin_infer(model, inputs, **options)


def test_a_request_that_waits_too_long_is_never_run(rpc):
    with Gate() as first_gate, Gate() as second_gate:
        first = begin_at(rpc, "patient", first_gate)
        first_gate.wait_until_reached()
        second = begin_at(rpc, "patient", second_gate, timeout=100_000)
        assert second.refusal() == ("UNAVAILABLE", "Request timeout expired")
        first_gate.open()
        first.result()


def test_a_queue_that_is_full(rpc):
    """One runs, as many as allowed wait, and one more is refused at once."""
    with Gate() as gate:
        calls = [begin_at(rpc, "patient", gate)]
        gate.wait_until_reached()
        calls += [begin_at(rpc, "patient", gate) for _ in range(3)]
        wait_until(lambda: any(call.done() for call in calls))
        gate.open()
        ends = []
        for call in calls:
            try:
                call.result()
            except Refused as refused:
                ends.append(refused.answer)
        text = "[request id: <id_unknown>] Exceeds maximum queue size"
        assert ends == [("UNAVAILABLE", text)]


def test_a_model_that_is_unloaded_finishes_its_requests(rpc, web):
    with Gate() as gate:
        inputs = [tensor(data=X), gate.input]
        call = rpc.begin_infer("gate", inputs)
        gate.wait_until_reached()
        rpc("RepositoryModelUnload", model_name="gate")
        text = "Request for unknown model: 'gate' has no available versions"
        assert rpc.infer_refusal("gate", inputs) == ("NOT_FOUND", text)
        assert rpc.refusal("ModelMetadata", name="gate") == ("NOT_FOUND", text)
        assert web.refusal("GET", "/v2/models/gate") == (404, text)
        assert rpc.refusal("ModelMetadata", name="gate", version="1") == (
            "UNAVAILABLE",
            "Request for unknown model: 'gate' version 1 is not at ready state",
        )
        assert not rpc("ModelReady", name="gate").ready
        assert states(rpc)["gate"] == "UNLOADING"
        assert "gate" not in states(rpc, ready=True)
        gate.open()
        assert call.result().raw_output_contents == [floats(2, 3, 4, 5)]
    wait_until(lambda: states(rpc)["gate"] == "UNAVAILABLE")
    rpc("RepositoryModelLoad", model_name="gate")
    assert states(rpc)["gate"] == "READY"
    with Gate() as gate:
        gate.open()
        rpc.infer("gate", [tensor(data=X), gate.input])


def states(rpc, *, ready=False):
    return {entry.name: entry.state for entry in rpc("RepositoryIndex", ready=ready).models}


def test_models_that_are_not_there_are_not_loaded(rpc, web):
    rpc("RepositoryModelUnload", model_name="nope")
    text = "failed to load 'nope', failed to poll from model repository"
    assert rpc.refusal("RepositoryModelLoad", model_name="nope") == ("INTERNAL", text)
    assert web.refusal("POST", "/v2/repository/models/nope/load") == (500, text)
    for action in ("unload", "load"):
        answer = web("POST", f"/v2/repository/models/fixed/{action}")
        assert answer == (200, [("Content-Type", "application/json"), ("Content-Length", "0")], b"")
    rpc.infer(inputs=[tensor(data=X)])


def test_a_server_that_ends_finishes_its_requests(make_server, memory):
    models = {name: MODELS[name] for name in ("fixed", "gate")}
    with make_server(models) as server, Grpc(server.grpc_url) as rpc, Gate() as gate:
        rpc.register("late", memory)
        memory.write(X)
        inputs = [tensor(at=("late", 16, 0)), gate.input]
        call = rpc.begin_infer("gate", inputs, [output(at=("late", 16, 64))])
        gate.wait_until_reached()
        server.terminate()
        wait_until(lambda: "unknown" in refusal_of_infer(rpc))
        assert rpc.infer_refusal(inputs=[tensor(data=X)]) == (
            "NOT_FOUND",
            "Request for unknown model: 'fixed' has no available versions",
        )
        assert rpc.refusal("ServerReady") == ("UNAVAILABLE", "Server exiting")
        assert rpc.refusal("ServerLive") == ("UNAVAILABLE", "Server exiting")
        assert rpc.refusal("ModelReady", name="fixed") == ("UNAVAILABLE", "Server not ready")
        assert rpc.is_registered("late")
        host, port = server.http_url.split(":")
        with pytest.raises(ConnectionRefusedError):
            http.client.HTTPConnection(host, int(port)).connect()
        assert server.is_running
        gate.open()
        assert call.result().raw_output_contents == [b""]
        assert memory.read(16, 64) == floats(2, 3, 4, 5)
        server.kill()


def refusal_of_infer(rpc):
    try:
        rpc.infer(inputs=[tensor(data=X)])
    except Refused as refused:
        return refused.answer[1]
    return ""
