"""Models in FakeTriton: written by hand, of every datatype, queued, in ensembles."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from conformance.raw import Gate, Grpc, Refused, floats, tensor, wait_until
from models import MODELS, NUMERIC, gate

from triton_zerocopy.testing import FakeTriton, Fault, PythonModel, RawModel

X = floats(1, 2, 3, 4)

BY_HAND = PythonModel.from_source(
    """
import json, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        output = pb_utils.get_output_config_by_name(config, "OUTPUT0")
        self.dtype = pb_utils.triton_string_to_numpy(output["data_type"])
        self.name = args["model_instance_name"]
        assert (args["model_name"], args["model_version"]) == ("by_hand", "3")

    def execute(self, requests):
        return [getattr(self, "case_" + self.case(request))(request) for request in requests]

    def case(self, request):
        return {"": "answer"}.get(request.request_id(), request.request_id())

    def x(self, request):
        return pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()

    def respond(self, *tensors, **rest):
        return pb_utils.InferenceResponse(list(tensors), **rest)

    def case_answer(self, request):
        x = self.x(request)
        x += 1  # inputs are the model's own
        return self.respond(
            pb_utils.Tensor("OUTPUT0", x.astype(self.dtype)), pb_utils.Tensor("UNDECLARED", x)
        )

    def case_raises(self, request):
        raise RuntimeError("boom")

    def case_error(self, request):
        error = pb_utils.TritonError("not now", pb_utils.TritonError.UNAVAILABLE)
        return self.respond(error=error)

    def case_wrong_type(self, request):
        return self.respond(pb_utils.Tensor("OUTPUT0", self.x(request).astype(np.int32)))

    def case_facts(self, request):
        facts = [
            request.requested_output_names(), json.loads(request.parameters()), request.timeout(),
            [tensor.name() for tensor in request.inputs()], self.name,
        ]
        return self.respond(error=pb_utils.TritonError(json.dumps(facts)))

    def case_polls(self, request):
        deadline = time.monotonic() + 20
        while not request.is_cancelled() and time.monotonic() < deadline:
            time.sleep(0.001)
        pb_utils.Logger.log_info(f"cancelled: {request.is_cancelled()}")
        return self.respond(error=pb_utils.TritonError("given up"))

    def finalize(self):
        print("finalized", flush=True)
""",
    config_pbtxt="""
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
""",
    version="3",
)

CHAIN = """
platform: "ensemble"
max_batch_size: 4
input [ { name: "IN" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ 3 ] },
         { name: "SUMS" data_type: TYPE_FP32 dims: [ 1 ] } ]
ensemble_scheduling {
  step [
    { model_name: "rows" model_version: -1
      input_map { key: "INPUT0" value: "between" }
      output_map { key: "OUTPUT0" value: "OUT" }
      output_map { key: "SUM" value: "SUMS" } },
    { model_name: "rows" model_version: -1
      input_map { key: "INPUT0" value: "IN" }
      output_map { key: "OUTPUT0" value: "between" } }
  ]
}
"""

BATCHED = PythonModel(
    gate,
    inputs={"INPUT0": ("FP32", [-1]), "GATE": ("INT64", [1])},
    outputs={"OUTPUT0": ("FP32", [-1])},
    config="dynamic_batching { }",
)


OWN = {
    "by_hand": BY_HAND,
    "rows": MODELS["rows"],
    "chain": RawModel(CHAIN),
    "batched": BATCHED,
    "two_at_once": PythonModel(
        gate,
        inputs={"INPUT0": ("FP32", [-1]), "GATE": ("INT64", [1])},
        outputs={"OUTPUT0": ("FP32", [-1])},
        instances=2,
    ),
}


@pytest.fixture(scope="module")
def own():
    with FakeTriton(OWN) as server:
        yield server


@pytest.fixture
def asked(own):
    yield own
    own.clear()


def test_a_model_by_hand(rpc):
    answer = rpc.infer("by_hand", [tensor(data=X)])
    assert answer.model_version == "3"
    assert [entry.name for entry in answer.outputs] == ["OUTPUT0"]
    assert answer.raw_output_contents == [floats(2, 3, 4, 5)]


def test_what_it_may_do_wrong(rpc):
    def refusal(case):
        return rpc.infer_refusal("by_hand", [tensor(data=X)], request_id=case)

    code, text = refusal("raises")
    assert code == "INTERNAL"
    assert text.startswith(
        "Failed to process the request(s) for model 'by_hand_0_0', message: RuntimeError: boom\n\n"
        "At:\n  "
    )
    assert "model.py(34): case_raises\n  " in text
    assert refusal("error") == ("UNAVAILABLE", "not now")
    answer = rpc.infer("by_hand", [tensor(data=X)], request_id="wrong_type")
    assert answer.outputs[0].datatype == "INT32"


def test_what_it_is_told(rpc):
    _, text = rpc.infer_refusal(
        "by_hand", [tensor(data=X)], request_id="facts", mine="x", timeout=5, more=2
    )
    names, parameters, timeout, inputs, name = json.loads(text)
    assert (names, inputs, name) == (["OUTPUT0"], ["INPUT0"], "by_hand_0_0")
    assert (parameters, timeout) == ({"mine": "x", "more": 2}, 5)


def test_it_can_see_that_it_was_cancelled(own, rpc):
    call = rpc.begin_infer("by_hand", [tensor(data=X)], request_id="polls")
    wait_until(lambda: own.state().running == 1)
    call.cancel()
    wait_until(lambda: "cancelled: True" in own.log_text())


def test_a_chain_of_models(rpc):
    """In whatever order they are written down, with their batches."""
    rows = tensor("IN", shape=(2, 3), data=floats(1, 2, 3, 4, 5, 6))
    answer = rpc.infer("chain", [rows])
    assert [(entry.name, list(entry.shape)) for entry in answer.outputs] == [
        ("OUT", [2, 3]),
        ("SUMS", [2, 1]),
    ]
    assert answer.raw_output_contents == [floats(3, 4, 5, 6, 7, 8), floats(9, 18)]


def test_as_many_at_once_as_there_are_instances(own, rpc):
    with contextlib.ExitStack() as stack:
        gates = [stack.enter_context(Gate()) for _ in range(3)]
        calls = [rpc.begin_infer("two_at_once", [tensor(data=X), each.input]) for each in gates]
        wait_until(lambda: (own.state().running, own.state().queued) == (2, 1))
        for each in gates:
            each.open()
        for call in calls:
            call.result()


def test_what_a_batcher_has_not_taken_is_dropped_when_it_is_cancelled(own, rpc):
    """As measured on 2.51.0: two that wait are in batches to come."""
    with Gate() as each:
        calls = []
        for _ in range(6):
            calls.append(rpc.begin_infer("batched", [tensor(data=X), each.input]))
            wait_until(lambda: depth(own) == len(calls))
        for call in calls[1:]:
            call.cancel()
            assert call.refusal()[0] == "CANCELLED"
        # A call that comes later is handled later.
        rpc("ServerLive")
        each.open()
        calls[0].result()
        wait_until(lambda: depth(own) == 0)
    (entry,) = rpc("ModelStatistics", name="batched").model_stats
    assert (entry.inference_stats.success.count, entry.inference_stats.fail.count) == (3, 3)


def depth(server):
    state = server.state()
    return state.queued + state.running


def test_models_of_one_server_do_not_share_modules():
    """Each has a helper of the same name next to its model.py."""
    source = """
import helper
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        x = requests[0].inputs()[0].as_numpy()
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", x * helper.FACTOR)])]
"""
    config = """
backend: "python"
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""
    models = {
        f"by_{factor}": RawModel(
            config, {"1/model.py": source, "1/helper.py": f"FACTOR = {factor}\n"}
        )
        for factor in (2, 3)
    }
    with FakeTriton(models) as server, Grpc(server.grpc_url) as rpc:
        for factor in (2, 3, 2):
            answer = rpc.infer(f"by_{factor}", [tensor(data=X)])
            assert answer.raw_output_contents == [floats(*[factor * n for n in (1, 2, 3, 4)])]


def test_bit_patterns_that_are_no_numbers(fake):
    """NaNs with a payload, among others, come through."""
    rng = np.random.default_rng(1)
    inputs = []
    for name in NUMERIC:
        size = 8 if "64" in name else 4 if "32" in name else 2 if "16" in name else 1
        high = 2 if name == "BOOL" else 256
        data = rng.integers(0, high, 2 * size, np.uint8).tobytes()
        inputs.append(tensor(name, name, (1, 2), data=data))
    with Grpc(fake.grpc_url) as rpc:
        answer = rpc.infer("echo", inputs)
    found = dict(zip([o.name for o in answer.outputs], answer.raw_output_contents, strict=True))
    assert found == {f"OUT_{each['name']}": each["data"] for each in inputs}


def test_a_fault_in_a_step_of_an_ensemble_is_one_of_the_ensemble(own, rpc):
    """Steps are no calls: faults befall what clients ask for."""
    rows = tensor("IN", shape=(1, 3), data=floats(1, 2, 3))
    own.inject(Fault("ModelInfer", model="rows", fail=("INTERNAL", "no")))
    rpc.infer("chain", [rows])
    own.inject(Fault("ModelInfer", model="chain", before="running", fail=("ABORTED", "yes")))
    with pytest.raises(Refused) as raised:
        rpc.infer("chain", [rows])
    assert raised.value.answer == ("ABORTED", "yes")
