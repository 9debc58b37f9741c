"""Models in a real server."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from models import has_strings
from tritonclient.utils import InferenceServerException

from triton_zerocopy.testing import (
    InterpreterNotFound,
    PythonModel,
    RawModel,
    ServableModel,
    TritonServer,
)
from triton_zerocopy.testing._interpreter import ENVIRONMENT_VARIABLE, find_interpreter
from triton_zerocopy.testing._sweep import session_members

from .conftest import DATATYPES, Infer, infer_input

NUMERIC = {name: datatype for name, datatype in DATATYPES.items() if datatype != "BYTES"}
NUMPY = {datatype: name for name, datatype in NUMERIC.items()} | {"BF16": ml_dtypes.bfloat16}
FACTOR = 3
X, Y = {"X": ("FP32", [-1])}, {"Y": ("FP32", [-1])}


def same(**inputs: Any) -> Any:
    return {f"O_{name}": array for name, array in inputs.items()}


def exclaim(X: Any) -> Any:
    assert all(isinstance(item, bytes) for item in X.ravel())
    return np.array([item + b"!" for item in X.ravel()], dtype=object).reshape(X.shape)


def scale(X: Any) -> Any:
    return X * np.float32(FACTOR)


def row_sums(X: Any) -> Any:
    return X.sum(axis=1, keepdims=True)


def fail(X: Any) -> Any:
    raise KeyError(f"no good: {X[0]:.0f}")


def wrong_type(X: Any) -> Any:
    return X.astype("float64")


def wrong_name(X: Any) -> Any:
    return {"Z": X}


def count(N: Any) -> Any:
    for number in range(int(N[0])):
        yield np.array([number], dtype=np.int32)
    if N[0] > 2:
        raise ValueError("too many")


def truncate(X: Any) -> Any:
    """BF16 holds the upper half of an FP32."""
    return (X.view(np.uint32) >> 16).astype(np.uint16)


HAND_WRITTEN = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("Y", request.inputs()[0].as_numpy() + 1)])
            for request in requests
        ]
"""
FLOATS = """
max_batch_size: 0
input [ { name: "X" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] } ]
"""
ENSEMBLE = f"""
platform: "ensemble"
{FLOATS}
ensemble_scheduling {{
  step [
    {{ model_name: "scale" model_version: -1
      input_map {{ key: "X" value: "X" }} output_map {{ key: "Y" value: "scaled" }} }},
    {{ model_name: "hand_written" model_version: -1
      input_map {{ key: "X" value: "scaled" }} output_map {{ key: "Y" value: "Y" }} }}
  ]
}}
"""

SAME = PythonModel(
    same,
    inputs={each: (each, [-1, -1]) for each in NUMERIC.values()},
    outputs={f"O_{each}": (each, [-1, -1]) for each in NUMERIC.values()},
)
COUNT = PythonModel(
    count, inputs={"N": ("INT32", [1])}, outputs={"Y": ("INT32", [1])}, decoupled=True
)
TRUNCATE = PythonModel(truncate, inputs=X, outputs={"Y": ("BF16", [-1])})
MODELS: dict[str, ServableModel] = {
    "same": SAME,
    "count": COUNT,
    "truncate": TRUNCATE,
    "scale": PythonModel(scale, inputs=X, outputs=Y),
    "exclaim": PythonModel(
        exclaim, inputs={"X": ("BYTES", [-1, -1])}, outputs={"Y": ("BYTES", [-1, -1])}
    ),
    "row_sums": PythonModel(row_sums, inputs=X, outputs={"Y": ("FP32", [1])}, max_batch_size=8),
    "fail": PythonModel(fail, inputs=X, outputs=Y),
    "wrong_type": PythonModel(wrong_type, inputs=X, outputs=Y),
    "wrong_name": PythonModel(wrong_name, inputs=X, outputs=Y),
    "hand_written": PythonModel.from_source(HAND_WRITTEN, config_pbtxt=FLOATS),
    "ensemble": RawModel(ENSEMBLE),
}


@pytest.fixture(scope="module")
def server() -> Iterator[TritonServer]:
    """One server with all models."""
    if not has_strings():
        pytest.skip("the server's Python is 3.13, on which it cannot take BYTES")
    with TritonServer(models=MODELS) as server:
        yield server
        server.kill()  # quicker than a polite end


@pytest.fixture(scope="module", params=["numpy", "dlpack"])
def either_server(request: pytest.FixtureRequest) -> Iterator[TritonServer]:
    """The server as it is, and one on Python 3.13, where tensors go through DLPack."""
    if request.param == "numpy":
        yield request.getfixturevalue("server")
        return
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, _python_3_13())
        with TritonServer({"same": SAME, "truncate": TRUNCATE, "count": COUNT}) as server:
            yield server
            server.kill()


def _python_3_13() -> str:
    found = sorted((Path.home() / ".pyenv" / "versions").glob("3.13*/bin/python3.13"))
    name = str(found[-1]) if found else "python3.13"
    try:
        find_interpreter({ENVIRONMENT_VARIABLE: name})
    except InterpreterNotFound as error:
        pytest.skip(str(error))
    return name


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (0, 3), (3, 0)])
def test_all_numeric_datatypes_go_in_and_out(
    either_server: TritonServer, infer: Infer, shape: tuple[int, int]
) -> None:
    """Unchanged, whatever the shape."""
    numbers = np.arange(np.prod(shape)).reshape(shape)
    inputs = {each: numbers.astype(NUMPY[each]) for each in NUMERIC.values()}

    outputs = infer(either_server, "same", inputs)

    for name, array in inputs.items():
        assert outputs[f"O_{name}"].dtype == array.dtype
        np.testing.assert_array_equal(outputs[f"O_{name}"], array)


def test_bf16_is_made_of_bit_patterns(either_server: TritonServer, infer: Infer) -> None:
    """A function returns them as uint16."""
    numbers = np.array([1.0, -2.5, 0.0], np.float32)

    outputs = infer(either_server, "truncate", {"X": numbers})

    np.testing.assert_array_equal(outputs["Y"], numbers.astype(ml_dtypes.bfloat16))


def test_no_complaint_of_numpy_fills_the_log(either_server: TritonServer, infer: Infer) -> None:
    """Neither about capsules, nor about anything else."""
    infer(either_server, "truncate", {"X": np.zeros(1, np.float32)})

    assert "Exception ignored" not in either_server.log_text()


def test_a_generator_answers_many_times(either_server: TritonServer) -> None:
    """Each value is a response; an exception is the last one."""
    assert _stream(either_server, 2) == [0, 1]
    assert _stream(either_server, 3) == [0, 1, 2, "ValueError: too many"]


def _stream(server: TritonServer, number: int) -> list[Any]:
    answers: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(server.grpc_url) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer(
            "count",
            [infer_input("N", np.array([number], np.int32))],
            enable_empty_final_response=True,
        )
        found: list[Any] = []
        while True:
            answer = answers.get(timeout=10)
            if isinstance(answer, Exception):
                found.append(str(answer))
                continue
            if answer.get_response().parameters["triton_final_response"].bool_param:
                break
            found.append(int(answer.as_numpy("Y")[0]))
        client.stop_stream()
    return found


def test_bytes_are_bytes(server: TritonServer, infer: Infer) -> None:
    """Whatever they contain, and none at all."""
    texts = np.array([[b"a", b""], [b"\0\xff", "é".encode()]], dtype=object)

    outputs = infer(server, "exclaim", {"X": texts})
    nothing = infer(server, "exclaim", {"X": texts[:0]})

    assert outputs["Y"].tolist() == [[b"a!", b"!"], [b"\0\xff!", "é!".encode()]]
    assert nothing["Y"].shape == (0, 2)


def test_a_constant_of_the_module_is_used(server: TritonServer, infer: Infer) -> None:
    """And the array alone is enough for a single output."""
    assert infer(server, "scale", {"X": np.ones(2, np.float32)})["Y"].tolist() == [3, 3]


def test_a_batch_arrives_as_one(server: TritonServer, infer: Infer) -> None:
    """With the batch dimension in front."""
    batch = np.arange(6, dtype=np.float32).reshape(2, 3)

    assert infer(server, "row_sums", {"X": batch})["Y"].tolist() == [[3], [12]]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("fail", "KeyError: 'no good: 1'"),
        ("wrong_type", "Y is declared FP32 .float32., and the function returned float64"),
        ("wrong_name", "returned .'Z'., which the model does not declare"),
    ],
)
def test_an_exception_is_an_error_response(
    server: TritonServer, infer: Infer, model: str, message: str
) -> None:
    """With its type and text; the model goes on."""
    for _ in range(2):
        with pytest.raises(InferenceServerException, match=message):
            infer(server, model, {"X": np.ones(1, np.float32)})


def test_models_of_any_kind_work_together(server: TritonServer, infer: Infer) -> None:
    """An ensemble of a function and a hand-written model."""
    assert infer(server, "ensemble", {"X": np.ones(2, np.float32)})["Y"].tolist() == [4, 4]


def test_instances_are_processes_of_their_own(infer: Infer) -> None:
    """As many as asked for."""
    model = PythonModel(scale, inputs=X, outputs=Y, instances=2)
    with TritonServer({"scale": model}) as server:
        assert server.log_text().count("TRITONBACKEND_ModelInstanceInitialize: scale_") == 2
        assert len(session_members(server.pid)) == 3
        server.kill()
