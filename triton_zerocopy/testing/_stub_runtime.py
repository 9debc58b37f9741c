"""What a generated model needs inside the server. Copied next to its model.py, never imported here.

Runs on the server's interpreter (Python 3.9 or newer) with the server's numpy, without the rest
of this package.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

pb_utils: Any = importlib.import_module("triton_python_backend_utils")

_NUMPY = {
    "BOOL": "bool",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "FP16": "float16",
    "BF16": "uint16",  # bit patterns: numpy has no such type
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}

_DLPACK_UINT, _DLPACK_BFLOAT = 1, 4


def make_model(
    function: Callable[..., Any],
    *,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    decoupled: bool,
    dlpack_only: bool,
) -> type:
    """Return the class that the server instantiates.

    Args:
        function: The model.
        inputs: Name → Triton datatype.
        outputs: The same for the outputs.
        decoupled: Whether the function is a generator of responses.
        dlpack_only: Whether the backend's own conversion to and from numpy is to be avoided.
    """

    def read(request: Any) -> dict[str, Any]:
        return {
            tensor.name(): _to_numpy(tensor, inputs[tensor.name()], dlpack_only)
            for tensor in request.inputs()
        }

    def respond(result: Any) -> Any:
        if not isinstance(result, dict):
            if len(outputs) != 1:
                raise TypeError(
                    f"the model has the outputs {', '.join(outputs)}, so its function must return"
                    f" a dict, not {type(result).__name__}"
                )
            result = {next(iter(outputs)): result}
        unknown = [name for name in result if name not in outputs]
        if unknown:
            raise KeyError(f"the function returned {unknown}, which the model does not declare")
        tensors = [
            _from_numpy(name, value, outputs[name], dlpack_only) for name, value in result.items()
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def failure(error: Exception) -> Any:
        text = f"{type(error).__name__}: {error}"
        return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(text))

    def execute_one(request: Any) -> Any:
        try:
            return respond(function(**read(request)))
        except Exception as error:  # noqa: BLE001 # the client gets it
            return failure(error)

    def stream_one(request: Any) -> None:
        sender = request.get_response_sender()
        try:
            for result in function(**read(request)):
                sender.send(respond(result))
        except Exception as error:  # noqa: BLE001 # the client gets it
            sender.send(failure(error))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    class TritonPythonModel:
        def execute(self, requests: list[Any]) -> list[Any] | None:
            if not decoupled:
                return [execute_one(request) for request in requests]
            for request in requests:
                stream_one(request)
            return None

    return TritonPythonModel


def _to_numpy(tensor: Any, datatype: str, dlpack_only: bool) -> Any:
    if datatype == "BF16":
        capsule = tensor.to_dlpack()
        # Another type code; the items keep their size and their bits.
        _tensor_of(capsule).code = _DLPACK_UINT
        return np.from_dlpack(_Exporter(capsule))
    return np.from_dlpack(tensor) if dlpack_only else tensor.as_numpy()


def _from_numpy(name: str, value: Any, datatype: str, dlpack_only: bool) -> Any:
    dtype = np.dtype(_NUMPY[datatype])
    if isinstance(value, (np.ndarray, np.generic)):
        is_text = datatype == "BYTES" and value.dtype.kind in "SU"
        if value.dtype != dtype and not is_text:
            raise TypeError(
                f"output {name} is declared {datatype} ({dtype}), and the function returned"
                f" {value.dtype}"
            )
    array = np.ascontiguousarray(value, dtype=dtype).reshape(np.shape(value))
    if datatype != "BF16" and not dlpack_only:
        return pb_utils.Tensor(name, array)
    if not array.flags.writeable:
        array = array.copy()  # numpy does not export a read-only array
    capsule = array.__dlpack__()
    # The backend compares all strides, even those that say nothing because a dimension has the
    # size 0 or 1, and are arbitrary then. Without strides a tensor is contiguous by definition.
    _tensor_of(capsule).strides = None
    if datatype == "BF16":
        _tensor_of(capsule).code = _DLPACK_BFLOAT
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # The backend marks a consumed capsule "used_dlpack". numpy looks for the name that the standard
    # prescribes, and complains on stderr about every capsule that has another one.
    _set_name(capsule, _USED)
    return tensor


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
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
    )


_USED = b"used_dltensor"  # the capsule keeps a pointer to it, so it lives as long as the module
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _tensor_of(capsule: Any) -> _DLTensor:
    return _DLTensor.from_address(_get_pointer(capsule, b"dltensor"))
