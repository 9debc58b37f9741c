"""What callers get: `InferResult`, and mappings of arrays that end with their lease."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ._cuda.arrays import DeviceArray
from ._datatypes import Array
from ._errors import LeaseReleased
from ._transports.base import Parameter


class LeaseArrays(Mapping[str, Any]):
    """Arrays by tensor name, for as long as a lease lasts.

    An array taken from it stays valid for as long as it is kept; the mapping does not.
    """

    __slots__ = ("__weakref__", "_arrays")

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._arrays: Mapping[str, Any] | None = arrays

    def expire(self) -> None:
        """The lease is over: drop the arrays, so that only those the caller kept live."""
        self._arrays = None

    @property
    def arrays(self) -> Mapping[str, Any]:
        """The arrays; raises LeaseReleased after the lease."""
        if self._arrays is None:
            raise LeaseReleased(
                "the lease is over; use its arrays inside the `async with` block, or keep an "
                "array in a variable"
            )
        return self._arrays

    def __getitem__(self, name: str) -> Any:
        return self.arrays[name]

    def __setitem__(self, name: str, value: object) -> None:
        raise TypeError(f"write into the array instead of replacing it: [{name!r}][:] = ...")

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __repr__(self) -> str:
        if self._arrays is None:
            return f"<{type(self).__name__} released>"
        shapes = {name: list(array.shape) for name, array in self._arrays.items()}
        return f"<{type(self).__name__} {shapes}>"


class InferResult(LeaseArrays):
    """The outputs of one infer call, a mapping from output name to array.

    They are numpy arrays, or `DeviceArray` where the model's memory is on a GPU (BYTES are
    always numpy's).

    Arrays of ``Model.infer`` belong to the caller. Arrays of ``Lease.infer`` are views of
    the slot, overwritten by the lease's next infer; read-only where the output came inline.

    Attributes:
        model_name: the model that answered.
        model_version: its version, as a string.
        request_id: the id given to the call.
        parameters: the response's parameters.
    """

    __slots__ = ("_to_host", "model_name", "model_version", "parameters", "request_id")

    def __init__(
        self,
        arrays: Mapping[str, Any],
        model_name: str,
        model_version: str,
        request_id: str,
        parameters: Mapping[str, Parameter],
        to_host: Callable[[Any], Awaitable[Array]] | None = None,
    ) -> None:
        self._arrays = arrays
        self.model_name = model_name
        self.model_version = model_version
        self.request_id = request_id
        self.parameters = parameters
        self._to_host = to_host

    async def numpy(self, name: str) -> Array:
        """Return an output as a host array; the same code works on every memory.

        An output in the memory of a GPU is copied, any other is returned as it is.

        Raises:
            KeyError: there is no such output.
            LeaseReleased: the lease of this result is over.
            CudaError: the copy failed.

        Cancellation: safe.
        """
        array = self[name]
        if isinstance(array, np.ndarray):
            return array
        if isinstance(array, DeviceArray):
            return await array.numpy()
        assert self._to_host is not None
        return await self._to_host(array)  # the caller's own tensor, given by out=
