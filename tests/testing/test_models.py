"""Models as descriptions: what is refused, and what is written into the repository."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triton_zerocopy.testing import ModelLoadError, PythonModel, RawModel

FP32 = {"X": ("FP32", [-1])}
OUT = {"Y": ("FP32", [-1])}


def same(X: Any) -> Any:
    return X


def any_inputs(**inputs: Any) -> Any:
    return inputs["X"]


def other_name(Z: Any) -> Any:
    return Z


def stream(X: Any) -> Any:
    yield X


def test_the_configuration_says_what_the_arguments_said() -> None:
    """All of it, and the extra text at the end."""
    model = PythonModel(
        same,
        inputs={"X": ("BYTES", (2, -1))},
        outputs={"Y": ("FP16", ())},
        max_batch_size=4,
        instances=2,
        config="dynamic_batching { }",
        version="7",
    )

    files = model.files("m")

    assert files["config.pbtxt"] == (
        'backend: "python"\n'
        "max_batch_size: 4\n"
        'input [ { name: "X" data_type: TYPE_STRING dims: [ 2, -1 ] } ]\n'
        'output [ { name: "Y" data_type: TYPE_FP16 dims: [ 1 ] reshape: { shape: [ ] } } ]\n'
        "instance_group [ { kind: KIND_CPU count: 2 } ]\n"
        "dynamic_batching { }\n"
    )
    assert set(files) == {"config.pbtxt", "7/model.py", "7/_stub_runtime.py"}
    assert repr(model) == "PythonModel(same)"


@pytest.mark.parametrize("function", [same, any_inputs])
def test_functions_that_take_the_inputs_are_taken(function: Callable[..., Any]) -> None:
    """By name, or all of them at once."""
    PythonModel(function, inputs=FP32, outputs=OUT)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (other_name, {}, "named like the inputs .X.: missing a required argument: 'Z'"),
        (stream, {}, "is a generator, but decoupled=False"),
        (same, {"decoupled": True}, "is not a generator, but decoupled=True"),
        (same, {"inputs": {"X": ("FLOAT", [1])}}, "input X: 'FLOAT' is not a Triton datatype"),
        (same, {"inputs": {"X": ("FP32", [0])}}, "input X: sizes in .0,. are positive or -1"),
        (same, {"outputs": {"Y": ("FP32", [])}}, "output Y: Triton has no tensors without dim"),
    ],
)
def test_a_model_that_cannot_work_is_refused(
    function: Callable[..., Any], arguments: dict[str, Any], message: str
) -> None:
    """When it is described, not when the server is started."""
    with pytest.raises(ValueError, match=message):
        PythonModel(function, **{"inputs": FP32, "outputs": OUT, **arguments})


def test_bytes_without_support_for_them_are_refused() -> None:
    """With the model's name and the way out."""
    model = PythonModel(same, inputs={"X": ("BYTES", [-1])}, outputs=OUT)

    with pytest.raises(ModelLoadError, match=r"'texts' has BYTES .*SERVER_PYTHON") as caught:
        model.files("texts", dlpack_only=True)

    assert caught.value.models == ("texts",)


def test_source_without_a_model_is_refused() -> None:
    """The server would say so much later."""
    with pytest.raises(ValueError, match="TritonPythonModel"):
        PythonModel.from_source("pass", config_pbtxt="")


@pytest.mark.parametrize("path", ["/etc/x", "../x", "1/../../x"])
def test_files_outside_the_model_are_refused(path: str) -> None:
    """A typing error must not write elsewhere."""
    with pytest.raises(ValueError, match="leads out of the model's directory"):
        RawModel("", {path: ""})


def test_a_raw_model_is_written_as_given(tmp_path: Path) -> None:
    """With its version directory, which an ensemble needs although it is empty."""
    RawModel("config", {"2/model.bin": b"\0", "labels.txt": "a"}, version="2").write(tmp_path)
    RawModel("config").write(tmp_path / "ensemble")

    assert (tmp_path / "config.pbtxt").read_text() == "config"
    assert (tmp_path / "2" / "model.bin").read_bytes() == b"\0"
    assert (tmp_path / "labels.txt").read_text() == "a"
    assert list((tmp_path / "ensemble" / "1").iterdir()) == []
