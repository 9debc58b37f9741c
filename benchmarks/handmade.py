"""What a competent user of tritonclient reuses from call to call: requests, regions and arrays.

tritonclient has four clients with the same classes: for gRPC and HTTP, each of them synchronous
and for asyncio. Who calls them is in `peers` (asyncio) and `blocking` (threads).
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
from tritonclient import grpc, http
from tritonclient.utils import shared_memory

from .workloads import Array, Tensors

GRPC = grpc
HTTP = http


class InlineRequest:
    """Tensors inside the message; the result is a read-only view of the answer's bytes.

    Args:
        inputs: what is sent.
        kit: `GRPC` or `HTTP`, whose classes are used.
    """

    def __init__(self, inputs: Tensors, kit: Any) -> None:
        self._arrays = inputs
        self.inputs = [kit.InferInput(name, array.shape, "FP32") for name, array in inputs.items()]
        self._names = [name.replace("INPUT", "OUTPUT") for name in inputs]

    def fill(self) -> None:
        """Copy the arrays into the request."""
        for tensor, array in zip(self.inputs, self._arrays.values(), strict=True):
            tensor.set_data_from_numpy(array)

    def read(self, result: Any) -> Tensors:
        """Return the outputs of an answer."""
        return {name: result.as_numpy(name) for name in self._names}


class ShmRequest:
    """One input and one output in a shared memory region of their own."""

    def __init__(self, inputs: Tensors, kit: Any) -> None:
        (self._array,) = inputs.values()
        self.size = self._array.nbytes
        self.region = f"by_hand_{secrets.token_hex(8)}"
        self._handle = shared_memory.create_shared_memory_region(
            self.region, self.region, 2 * self.size, create_only=True
        )
        self._source: Array | None = self._view(0)
        self._target: Array | None = self._view(self.size)
        self.input = kit.InferInput("INPUT0", self._array.shape, "FP32")
        self.input.set_shared_memory(self.region, self.size)
        self.output = kit.InferRequestedOutput("OUTPUT0")
        self.output.set_shared_memory(self.region, self.size, offset=self.size)

    @property
    def registration(self) -> tuple[str, str, int]:
        """What a server is told of the region."""
        return self.region, self.region, 2 * self.size

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the input and the output."""
        return self._array.shape

    def fill(self) -> None:
        """Copy the array into the region."""
        assert self._source is not None
        self._source[...] = self._array

    def answer_yourself(self) -> None:
        """Do what a model does that gives back what it gets."""
        assert self._source is not None
        assert self._target is not None
        self._target[...] = self._source

    def read(self) -> Array:
        """Copy the output out of it."""
        assert self._target is not None
        return self._target.copy()

    def read_into(self, array: Array) -> None:
        """Copy the output out of it, into an array that is there."""
        assert self._target is not None
        array[...] = self._target

    def close(self) -> None:
        """Remove the region, which no server knows any more."""
        self._source = self._target = None
        shared_memory.destroy_shared_memory_region(self._handle)

    def _view(self, offset: int) -> Array:
        shape = self._array.shape
        view: Array = shared_memory.get_contents_as_numpy(self._handle, np.float32, shape, offset)
        return view
