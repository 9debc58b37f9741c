"""The models of the test server, as plain Python functions."""

from __future__ import annotations

import os
import time

import numpy as np

from triton_zerocopy.testing import ModelLoadError, PythonModel, RawModel, ServableModel
from triton_zerocopy.testing._interpreter import find_interpreter
from triton_zerocopy.testing._runtime import is_provisioned_by_us

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


GATES = "/dev/shm/tzc-gate-"


def gate(INPUT0, GATE):
    """Tell by a file that it runs, and wait for another to go on; see support.Gate."""
    gate = f"{GATES}{int(GATE.flat[0])}"
    open(f"{gate}.shut", "w").close()
    deadline = time.monotonic() + 30
    while not os.path.exists(f"{gate}.open") and time.monotonic() < deadline:
        time.sleep(0.001)
    os.unlink(f"{gate}.shut")
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


def runs(N, state={"runs": 0}):  # noqa: B006 # a model that remembers
    """Tell how often it has run, and N values."""
    state["runs"] += 1
    return {
        "RUNS": np.array([state["runs"]], np.int32),
        "OUTPUT0": np.arange(int(N[0]), dtype=np.float32),
    }


def add_if_there(A, B=None):
    return A if B is None else A + B


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
    "gate": PythonModel(
        gate, inputs={"INPUT0": FP32, "GATE": ("INT64", [1])}, outputs={"OUTPUT0": FP32}
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

MODELS["runs"] = PythonModel(
    runs, inputs={"N": ("INT32", [1])}, outputs={"RUNS": ("INT32", [1]), "OUTPUT0": FP32}
)


class Optional(ServableModel):
    """Another model, of which one input may be left out."""

    def __init__(self, model, name):
        self._model = model
        self._name = name

    def files(self, name, *, dlpack_only=False):
        files = dict(self._model.files(name, dlpack_only=dlpack_only))
        before = f'name: "{self._name}"'
        files["config.pbtxt"] = files["config.pbtxt"].replace(before, f"{before} optional: true")
        return files


FOUR = ("FP32", [4])
MODELS["optional"] = Optional(
    PythonModel(add_if_there, inputs={"A": FOUR, "B": FOUR}, outputs={"OUTPUT0": FOUR}), "B"
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

# Its answer is an error, while one of its branches still waits at a gate. Not served to all
# tests: a real server that has answered so waits long for its own end.
_TORN = """
platform: "ensemble"
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] },
        { name: "GATE" data_type: TYPE_INT64 dims: [ 1 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] },
         { name: "OUTPUT1" data_type: TYPE_FP32 dims: [ -1 ] } ]
ensemble_scheduling {
  step [
    { model_name: "gate" model_version: -1
      input_map { key: "INPUT0" value: "INPUT0" }
      input_map { key: "GATE" value: "GATE" }
      output_map { key: "OUTPUT0" value: "OUTPUT0" } },
    { model_name: "fail" model_version: -1
      input_map { key: "INPUT0" value: "INPUT0" }
      output_map { key: "OUTPUT0" value: "OUTPUT1" } }
  ]
}
"""
TORN = RawModel(_TORN)


def has_strings():
    """Tell whether the server here takes BYTES; not if there is only a Python 3.13 for it."""
    return not (is_provisioned_by_us() and find_interpreter().dlpack_only)


if not has_strings():
    for _name, _model in list(MODELS.items()):
        try:
            _model.files(_name, dlpack_only=True)
        except ModelLoadError:
            del MODELS[_name]
