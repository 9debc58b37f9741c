"""The models of the test server, as plain Python functions."""

from __future__ import annotations

import time

import numpy as np

from triton_zerocopy.testing import PythonModel, RawModel

NUMERIC = [
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
]


def add_one(INPUT0):
    return INPUT0 + 1


def slow(INPUT0):
    """Wait as many seconds as its first value says, then write late."""
    time.sleep(float(INPUT0.flat[0]))
    return INPUT0 + 1


def rows(INPUT0):
    """Two outputs of a batch: each row plus one, and each row's sum."""
    return {"OUTPUT0": INPUT0 + 1, "SUM": INPUT0.sum(axis=1, keepdims=True)}


def two(A, B):
    return {"SUM": A + B, "DIFFERENCE": A - B}


def shout(TEXT):
    return np.array([text.upper() * 2 for text in TEXT.ravel()], dtype=object).reshape(TEXT.shape)


def count(N):
    return np.arange(int(N[0]), dtype=np.float32)


def fail(INPUT0):
    raise ValueError("this model never works")


def stream(INPUT0):
    yield INPUT0
    yield INPUT0


def echo(**tensors):
    return {"OUT_" + name: value for name, value in tensors.items()}


FP32 = ("FP32", [-1])

MODELS = {
    "add_one": PythonModel(add_one, inputs={"INPUT0": FP32}, outputs={"OUTPUT0": FP32}),
    "fixed": PythonModel(
        add_one, inputs={"INPUT0": ("FP32", [4])}, outputs={"OUTPUT0": ("FP32", [4])}
    ),
    "slow": PythonModel(
        slow, inputs={"INPUT0": ("FP32", [16])}, outputs={"OUTPUT0": ("FP32", [16])}, instances=4
    ),
    "rows": PythonModel(
        rows,
        inputs={"INPUT0": ("FP32", [3])},
        outputs={"OUTPUT0": ("FP32", [3]), "SUM": ("FP32", [1])},
        max_batch_size=4,
        instances=2,
    ),
    "wide_rows": PythonModel(
        rows,
        inputs={"INPUT0": ("FP32", [-1])},
        outputs={"OUTPUT0": ("FP32", [-1]), "SUM": ("FP32", [1])},
        max_batch_size=4,
    ),
    "two": PythonModel(
        two,
        inputs={"A": ("INT32", [4]), "B": ("INT32", [4])},
        outputs={"SUM": ("INT32", [4]), "DIFFERENCE": ("INT32", [4])},
    ),
    "shout": PythonModel(
        shout, inputs={"TEXT": ("BYTES", [-1, 1])}, outputs={"LOUD": ("BYTES", [-1, 1])}
    ),
    "shout_rows": PythonModel(
        shout,
        inputs={"TEXT": ("BYTES", [1])},
        outputs={"LOUD": ("BYTES", [1])},
        max_batch_size=4,
    ),
    "count": PythonModel(count, inputs={"N": ("INT32", [1])}, outputs={"OUTPUT0": FP32}),
    "fail": PythonModel(fail, inputs={"INPUT0": FP32}, outputs={"OUTPUT0": FP32}),
    "stream": PythonModel(
        stream, inputs={"INPUT0": FP32}, outputs={"OUTPUT0": FP32}, decoupled=True
    ),
    "echo": PythonModel(
        echo,
        inputs={name: (name, [-1, 2]) for name in NUMERIC},
        outputs={"OUT_" + name: (name, [-1, 2]) for name in NUMERIC},
    ),
}

OPTIONAL = """
backend: "python"
input [ { name: "A" data_type: TYPE_FP32 dims: [ 4 ] },
        { name: "B" data_type: TYPE_FP32 dims: [ 4 ] optional: true } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 4 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""

OPTIONAL_SOURCE = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            values = [tensor.as_numpy() for tensor in request.inputs()]
            total = values[0] if len(values) == 1 else values[0] + values[1]
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", total)]))
        return responses
"""

MODELS["optional"] = PythonModel.from_source(OPTIONAL_SOURCE, config_pbtxt=OPTIONAL)

RUNS = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.runs = 0

    def execute(self, requests):
        responses = []
        for request in requests:
            self.runs += 1
            size = int(pb_utils.get_input_tensor_by_name(request, "N").as_numpy()[0])
            tensors = [
                pb_utils.Tensor("RUNS", np.array([self.runs], np.int32)),
                pb_utils.Tensor("OUTPUT0", np.arange(size, dtype=np.float32)),
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses
"""
MODELS["runs"] = PythonModel.from_source(
    RUNS,
    config_pbtxt="""
backend: "python"
input [ { name: "N" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "RUNS" data_type: TYPE_INT32 dims: [ 1 ] },
         { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU } ]
""",
)

MODELS["queued"] = PythonModel(
    slow,
    inputs={"INPUT0": ("FP32", [16])},
    outputs={"OUTPUT0": ("FP32", [16])},
    max_batch_size=1,
    config="""
dynamic_batching {
  default_queue_policy {
    allow_timeout_override: true
    default_timeout_microseconds: 60000000
  }
}
""",
)

ENSEMBLE = """
platform: "ensemble"
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 16 ] },
         { name: "OUTPUT1" data_type: TYPE_FP32 dims: [ -1 ] } ]
ensemble_scheduling {
  step [
    { model_name: "slow" model_version: -1
      input_map { key: "INPUT0" value: "INPUT0" }
      output_map { key: "OUTPUT0" value: "OUTPUT0" } },
    { model_name: "fail" model_version: -1
      input_map { key: "INPUT0" value: "INPUT0" }
      output_map { key: "OUTPUT0" value: "OUTPUT1" } }
  ]
}
"""
MODELS["ensemble"] = RawModel(ENSEMBLE)
