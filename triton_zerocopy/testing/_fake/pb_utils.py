"""What a model.py imports as triton_python_backend_utils: the part of it that tests use.

Made by hand after the interface of Triton's python backend (its README, "Python backend API").
"""

from __future__ import annotations

import ctypes
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .tensors import ITEM_SIZE, NUMPY, Input, Shape, pack, unpack

Array = npt.NDArray[Any]

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

_UINT, _BFLOAT = 1, 4  # type codes of DLPack
_DATATYPES = {np.dtype(name): datatype for datatype, name in NUMPY.items() if datatype != "BF16"}
_CODES = (
    *("UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG"),
    *("UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS", "CANCELLED"),
)


class TritonError:
    """An error that a model answers with."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG = range(4)
    UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(4, 8)

    def __init__(self, message: str, code: int = 1) -> None:
        self._message = str(message)
        self._code = code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code

    @property
    def status(self) -> str:
        """The name of the gRPC status code."""
        name = _CODES[self._code]
        return {"INVALID_ARG": "INVALID_ARGUMENT", "UNSUPPORTED": "UNIMPLEMENTED"}.get(name, name)


class TritonModelException(Exception):
    """What a model raises."""


class Tensor:
    """A named tensor.

    Args:
        name: Its name.
        array: Its content; BYTES are objects, or text of a fixed width.
        datatype: Triton's datatype, for one that numpy does not have.
    """

    def __init__(self, name: str, array: Array, datatype: str | None = None) -> None:
        if datatype is None:
            if array.dtype.kind in "SU":
                array = array.astype(object)
            datatype = _DATATYPES.get(array.dtype)
        if datatype is None:
            raise TritonModelException(f"Unsupported numpy type {array.dtype} in tensor {name}")
        self._name = name
        self._array = array
        self._datatype = datatype

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Array:
        if self._datatype == "BF16":
            raise TritonModelException("BF16 has no numpy type; use DLPack")
        return self._array

    def triton_dtype(self) -> str:
        return self._datatype

    def shape(self) -> Shape:
        return self._array.shape

    def is_cpu(self) -> bool:
        return True

    def to_dlpack(self) -> Any:
        capsule = self._array.__dlpack__()
        if self._datatype == "BF16":
            _tensor_in(capsule).code = _BFLOAT
        return capsule

    @staticmethod
    def from_dlpack(name: str, capsule: Any) -> Tensor:
        if type(capsule).__name__ != "PyCapsule":
            capsule = capsule.__dlpack__()
        tensor = _tensor_in(capsule)
        datatype = None
        if tensor.code == _BFLOAT:
            tensor.code, datatype = _UINT, "BF16"
        return Tensor(name, np.from_dlpack(_Exporter(capsule)), datatype)

    def to_bytes(self) -> bytes:
        """Return its content as it travels."""
        if self._datatype != "BYTES":
            return self._array.tobytes()
        items = self._array.ravel().tolist()
        return pack([item.encode() if isinstance(item, str) else bytes(item) for item in items])


class InferenceRequest:
    """A request as a model sees it."""

    def __init__(
        self,
        *,
        inputs: Sequence[Tensor],
        requested: Sequence[str],
        request_id: str,
        parameters: Mapping[str, Any],
        timeout: int,
        is_cancelled: Callable[[], bool],
    ) -> None:
        self._inputs = list(inputs)
        self._requested = list(requested)
        self._id = request_id
        self._parameters = dict(parameters)
        self._timeout = timeout
        self._is_cancelled = is_cancelled

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def request_id(self) -> str:
        return self._id

    def correlation_id(self) -> int:
        return 0

    def requested_output_names(self) -> list[str]:
        return self._requested

    def parameters(self) -> str:
        return json.dumps(self._parameters, separators=(",", ":")) if self._parameters else ""

    def timeout(self) -> int:
        return self._timeout

    def is_cancelled(self) -> bool:
        return self._is_cancelled()


class InferenceResponse:
    """What a model answers to one request."""

    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None
    ) -> None:
        self._outputs = list(output_tensors)
        self._error = error

    def output_tensors(self) -> list[Tensor]:
        return self._outputs

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class Logger:
    """Messages for the server's log."""

    @staticmethod
    def log(message: str, level: object = None) -> None:
        del level
        sys.stdout.write(f"{message}\n")
        sys.stdout.flush()

    log_info = log_warn = log_error = log_verbose = log


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    """Return an input of a request, or None."""
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor | None:
    """Return an output of a response, or None."""
    return next((tensor for tensor in response.output_tensors() if tensor.name() == name), None)


def get_input_config_by_name(config: Mapping[str, Any], name: str) -> Any:
    """Return what a model's config says of an input, or None."""
    return next((entry for entry in config["input"] if entry["name"] == name), None)


def get_output_config_by_name(config: Mapping[str, Any], name: str) -> Any:
    """Return what a model's config says of an output, or None."""
    return next((entry for entry in config["output"] if entry["name"] == name), None)


def triton_string_to_numpy(name: str) -> type[Any]:
    """Return the numpy type of a datatype as config.pbtxt has it, as `TYPE_FP32`."""
    datatype = name.removeprefix("TYPE_")
    return np.dtype(NUMPY["BYTES" if datatype == "STRING" else datatype]).type


def tensor_of(entry: Input) -> Tensor:
    """Return an input as the model gets it; reads its bytes now.

    Raises:
        Refusal: A length of BYTES points past the end.
    """
    data = entry.source.read()
    if entry.datatype == "BYTES":
        items = list(unpack(data, entry.name))
        array = np.empty(len(items), dtype=object)
        array[:] = items
        return Tensor(entry.name, array.reshape(entry.shape))
    count = len(data) // ITEM_SIZE[entry.datatype]
    assert count == math.prod(entry.shape)
    # Of its own: a model may write into its inputs.
    array = np.frombuffer(bytearray(data), NUMPY[entry.datatype]).reshape(entry.shape)
    return Tensor(entry.name, array, entry.datatype)


class _Exporter:
    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # host memory


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
    )


_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _tensor_in(capsule: Any) -> _DLTensor:
    return _DLTensor.from_address(_get_pointer(capsule, b"dltensor"))
