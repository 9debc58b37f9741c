"""Running a model.py: the TritonPythonModel in it, once for each instance."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from . import pb_utils
from .refusals import Refusal, internal
from .tensors import Output

BACKEND_UTILITIES = "triton_python_backend_utils"


class Instance:
    """One instance of a model, in a thread of its own.

    Args:
        name: What Triton calls it, as `double_0_0`.
        source: Its model.py.
        config: The model's config, as the model gets it.

    Raises:
        Exception: Whatever the model.py raises.
    """

    def __init__(self, name: str, source: Path, config: dict[str, Any]) -> None:
        self.name = name
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        module = _load(source, name)
        self._model = module.TritonPythonModel()
        initialize = getattr(self._model, "initialize", None)
        if initialize is not None:
            initialize(
                {
                    "model_config": json.dumps(config),
                    "model_instance_kind": "CPU",
                    "model_instance_name": name,
                    "model_instance_device_id": "0",
                    "model_repository": str(source.parents[1]),
                    "model_version": source.parent.name,
                    "model_name": config["name"],
                }
            )

    async def execute(self, request: pb_utils.InferenceRequest) -> list[Output]:
        """Run the model.

        Raises:
            AnsweredError: The model answered with an error.
            ModelFailure: It raised.
        """
        loop = asyncio.get_running_loop()
        response = await loop.run_in_executor(self._thread, self._execute, request)
        error = response.error()
        if error is not None:
            raise AnsweredError(error.status, error.message())
        wanted = request.requested_output_names()
        return [
            Output(tensor.name(), tensor.triton_dtype(), tensor.shape(), tensor.to_bytes())
            for tensor in response.output_tensors()
            if tensor.name() in wanted
        ]

    def close(self) -> None:
        """End the thread, once it has finished what it does."""
        self._thread.submit(getattr(self._model, "finalize", lambda: None))
        self._thread.shutdown(wait=False)

    def _execute(self, request: pb_utils.InferenceRequest) -> pb_utils.InferenceResponse:
        failed = f"Failed to process the request(s) for model '{self.name}', message: "
        try:
            responses: Sequence[pb_utils.InferenceResponse] = self._model.execute([request])
        except Exception as error:
            # As pybind11 writes it down: the innermost call first.
            frames = reversed(traceback.extract_tb(error.__traceback__)[1:])
            calls = "".join(f"  {each.filename}({each.lineno}): {each.name}\n" for each in frames)
            text = f"{failed}{type(error).__name__}: {error}\n\nAt:\n{calls}"
            raise ModelFailure(text) from error
        if len(responses) != 1:
            raise ModelFailure(
                f"{failed}Number of InferenceResponse objects do not match the number of"
                " InferenceRequest objects. InferenceRequest(s) size is:1, and InferenceResponse(s)"
                f" size is:{len(responses)}\n"
            )
        return responses[0]


class AnsweredError(Refusal):
    """The model answered with an error, which the server counts as a success."""


class ModelFailure(Refusal):
    """The model raised, instead of answering."""

    def __init__(self, text: str) -> None:
        super().__init__("INTERNAL", text)


def _load(source: Path, name: str) -> ModuleType:
    """Import a model.py with the directory it is in, and forget what came from there."""
    sys.modules[BACKEND_UTILITIES] = pb_utils
    directory = str(source.parent)
    known = set(sys.modules)
    sys.path.insert(0, directory)
    try:
        spec = importlib.util.spec_from_file_location(f"_served_{name}", source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(directory)
        # The next model has modules of the same names, and so has this one when loaded again.
        for each in set(sys.modules) - known:
            origin = getattr(sys.modules[each], "__file__", None) or ""
            if origin.startswith(directory):
                del sys.modules[each]
    if not hasattr(module, "TritonPythonModel"):
        raise internal(f"{source} defines no TritonPythonModel")
    return module
