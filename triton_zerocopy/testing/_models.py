"""Models as tests write them: a Python function, a model.py, or any files at all."""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, final

from ._errors import ModelLoadError
from ._source import extract

Specs = Mapping[str, tuple[str, Sequence[int]]]
"""Tensor name → (Triton datatype, shape without the batch dimension; -1 is variable)."""

_DATATYPES = {
    name: f"TYPE_{name}"
    for name in (
        *("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"),
        *("FP16", "BF16", "FP32", "FP64"),
    )
} | {"BYTES": "TYPE_STRING"}

_RUNTIME = "_stub_runtime.py"


class ServableModel(ABC):
    """Something that can be written into a model repository."""

    @abstractmethod
    def files(self, name: str, *, dlpack_only: bool = False) -> Mapping[str, str | bytes]:
        """Return the files of the model's directory: relative path → content.

        Args:
            name: What the model is called in the repository.
            dlpack_only: Whether Python models on this server must use DLPack for all tensors.

        Raises:
            ModelLoadError: The model cannot run on such a server.
        """

    def write(self, directory: Path, *, dlpack_only: bool = False) -> None:
        """Write the model into a directory, whose name becomes the model's name."""
        for relative, content in self.files(directory.name, dlpack_only=dlpack_only).items():
            path = directory / relative
            if relative.endswith("/"):
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)


@final
class RawModel(ServableModel):
    """A model given by its files: an ensemble, a model of a C backend, a hand-written model.py."""

    def __init__(
        self,
        config_pbtxt: str,
        files: Mapping[str, str | bytes] | None = None,
        *,
        version: str = "1",
    ) -> None:
        """Describe the model.

        Args:
            config_pbtxt: The content of config.pbtxt.
            files: Path relative to the model's directory → content, as `1/model.py`.
            version: A version directory that exists even without files, as an ensemble needs it.

        Raises:
            ValueError: A path leads out of the model's directory.
        """
        self._files = {"config.pbtxt": config_pbtxt, f"{version}/": "", **(files or {})}
        for relative in self._files:
            path = PurePosixPath(relative)
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{relative!r} leads out of the model's directory.")

    def __repr__(self) -> str:
        return f"RawModel({', '.join(self._files)})"

    def files(self, name: str, *, dlpack_only: bool = False) -> Mapping[str, str | bytes]:
        """Return the files as they were given."""
        del name, dlpack_only
        return dict(self._files)


@final
class PythonModel(ServableModel):
    """A model that is one plain Python function.

    The server's interpreter is not the one that runs the tests, so the function's *source* goes
    there, with the modules and the constants of its module that it uses:

        def double(INPUT0):
            return {"OUTPUT0": INPUT0 * 2}

        PythonModel(
            double, inputs={"INPUT0": ("FP32", [-1])}, outputs={"OUTPUT0": ("FP32", [-1])}
        )

    It is called once per request, with numpy arrays as keyword arguments named like the inputs,
    and returns a dict of arrays, or the array itself when there is one output. BYTES are object
    arrays of `bytes`, BF16 are uint16 arrays of bit patterns. What it raises becomes an error
    response with that text. A decoupled model is a generator: every value it yields is a response.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        inputs: Specs,
        outputs: Specs,
        max_batch_size: int = 0,
        instances: int = 1,
        decoupled: bool = False,
        config: str = "",
        version: str = "1",
    ) -> None:
        """Describe the model.

        Args:
            function: Defined with `def`; no lambda, closure or decorator.
            inputs: Name → (datatype, shape without the batch dimension).
            outputs: The same for the outputs.
            max_batch_size: 0 for a model without a batch dimension.
            instances: How many requests are executed at the same time, each in its own process.
            decoupled: Whether the function is a generator of responses.
            config: More of config.pbtxt, as `dynamic_batching { }`.
            version: The model's version.

        Raises:
            ValueError: The function cannot be carried to the server, does not fit the inputs, or a
                datatype or shape is not one of Triton's.
        """
        self._inputs = _checked("input", inputs, max_batch_size)
        self._outputs = _checked("output", outputs, max_batch_size)
        self._source = extract(function)
        self._decoupled = decoupled
        self._version = version
        _check_signature(function, inputs, decoupled=decoupled)
        parts = ['backend: "python"', f"max_batch_size: {max_batch_size}"]
        parts += [_tensor("input", name, *spec) for name, spec in self._inputs.items()]
        parts += [_tensor("output", name, *spec) for name, spec in self._outputs.items()]
        if decoupled:
            parts.append("model_transaction_policy { decoupled: true }")
        if "instance_group" not in config:
            parts.append(f"instance_group [ {{ kind: KIND_CPU count: {instances} }} ]")
        self._config = "\n".join([*parts, config]).strip() + "\n"

    @staticmethod
    def from_source(source: str, *, config_pbtxt: str, version: str = "1") -> RawModel:
        """Return a model with a hand-written model.py.

        Args:
            source: The content of model.py, which defines the class TritonPythonModel.
            config_pbtxt: The content of config.pbtxt; `backend: "python"` is added if it is absent.
            version: The model's version.

        Raises:
            ValueError: The source defines no TritonPythonModel.
        """
        if "TritonPythonModel" not in source:
            raise ValueError(
                "A model.py defines the class TritonPythonModel; this source does not."
            )
        if "backend:" not in config_pbtxt:
            config_pbtxt = f'backend: "python"\n{config_pbtxt}'
        return RawModel(config_pbtxt, {f"{version}/model.py": source}, version=version)

    def __repr__(self) -> str:
        return f"PythonModel({self._source.name})"

    def files(self, name: str, *, dlpack_only: bool = False) -> Mapping[str, str | bytes]:
        """Return config.pbtxt, the generated model.py and what that imports."""
        inputs = {each: datatype for each, (datatype, _) in self._inputs.items()}
        outputs = {each: datatype for each, (datatype, _) in self._outputs.items()}
        if dlpack_only and "BYTES" in (*inputs.values(), *outputs.values()):
            raise ModelLoadError(
                f"The model {name!r} has BYTES tensors, which the server's python backend cannot"
                " handle on Python 3.13 (it lacks support for numpy 2, and DLPack has no strings)."
                " Install a Python 3.9 to 3.12 with a shared libpython next to it, or name one in"
                " TRITON_ZEROCOPY_SERVER_PYTHON.",
                models=(name,),
            )
        model = (
            "from __future__ import annotations\n\n"
            f"{self._source.text}\n\n"
            f"from {Path(_RUNTIME).stem} import make_model as _make_model\n\n"
            f"TritonPythonModel = _make_model(\n    {self._source.name},\n    inputs={inputs!r},\n"
            f"    outputs={outputs!r},\n    decoupled={self._decoupled!r},\n"
            f"    dlpack_only={dlpack_only!r},\n)\n"
        )
        return {
            "config.pbtxt": self._config,
            f"{self._version}/model.py": model,
            f"{self._version}/{_RUNTIME}": Path(__file__).with_name(_RUNTIME).read_bytes(),
        }


def _checked(
    kind: str, specs: Specs, max_batch_size: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    checked: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, (datatype, shape) in specs.items():
        if datatype not in _DATATYPES:
            raise ValueError(
                f"{kind} {name}: {datatype!r} is not a Triton datatype; those are"
                f" {', '.join(_DATATYPES)}."
            )
        dimensions = tuple(shape)
        if any(size < 1 and size != -1 for size in dimensions):
            raise ValueError(f"{kind} {name}: sizes in {dimensions} are positive or -1 (variable).")
        if not dimensions and max_batch_size == 0:
            raise ValueError(
                f"{kind} {name}: Triton has no tensors without dimensions; use the shape (1,)."
            )
        checked[name] = (datatype, dimensions)
    return checked


def _check_signature(function: Callable[..., Any], inputs: Specs, *, decoupled: bool) -> None:
    name = getattr(function, "__name__", "the function")
    try:
        inspect.signature(function).bind(**dict.fromkeys(inputs))
    except TypeError as error:
        raise ValueError(
            f"{name} is called with keyword arguments named like the inputs"
            f" ({', '.join(inputs) or 'none'}): {error}. Name its parameters so, or take **inputs."
        ) from error
    if inspect.isgeneratorfunction(function) != decoupled:
        raise ValueError(
            f"{name} is {'not ' if decoupled else ''}a generator, but decoupled={decoupled}:"
            " a decoupled model yields its responses, any other returns the only one."
        )


def _tensor(kind: str, name: str, datatype: str, shape: tuple[int, ...]) -> str:
    dims = ", ".join(map(str, shape))
    layout = f"dims: [ {dims} ]" if shape else "dims: [ 1 ] reshape: { shape: [ ] }"
    quoted = json.dumps(name)
    return f"{kind} [ {{ name: {quoted} data_type: {_DATATYPES[datatype]} {layout} }} ]"
