"""The inputs of a request after checking: where their bytes come from, and how to copy them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ._copying import Job, copy, copy_jobs
from ._cuda.arrays import DeviceArray
from ._cuda.transfer import Pair
from ._cuda.views import DeviceView
from ._datatypes import BYTES, Array, Shape, byte_size_of, encode_bytes
from ._errors import InputError
from ._regions.base import RegionTensor
from ._specs import TensorSpec

DeviceSource = DeviceView | DeviceArray


class Tensor(Protocol):
    """One checked input of one request."""

    @property
    def spec(self) -> TensorSpec: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def byte_size(self) -> int:
        """Exact bytes on the server's side."""
        ...

    def write(self, target: Array) -> None:
        """Copy into ``target``: this shape and dtype, or flat uint8 for BYTES."""
        ...

    def jobs(self, target: Array) -> list[Job]:
        """The same as what can be done at the same time."""
        ...

    def copies(self, target: DeviceArray) -> list[Pair]:
        """The same for a target on a GPU: what is to be copied where."""
        ...

    def payload(self) -> memoryview:
        """The bytes as they go inline into a message."""
        ...

    def rows(self, start: int, stop: int) -> Tensor:
        """The part of a batch from row ``start`` to before row ``stop``."""
        ...


@dataclass(slots=True)
class DenseTensor:
    """An array of fixed-size items, in any layout and byte order."""

    spec: TensorSpec
    array: Array

    @property
    def shape(self) -> Shape:
        return self.array.shape

    @property
    def byte_size(self) -> int:
        return self.array.nbytes

    def write(self, target: Array) -> None:
        target[...] = self.array  # of the same datatype, which was checked; in any byte order

    def jobs(self, target: Array) -> list[Job]:
        return copy_jobs(target, self.array)

    def copies(self, target: DeviceArray) -> list[Pair]:
        return [(target, self.array)]

    def payload(self) -> memoryview:
        if not self.byte_size:
            return memoryview(b"")
        native = np.ascontiguousarray(self.array, dtype=self.spec.dtype)
        return native.reshape(-1).view(np.uint8).data

    def rows(self, start: int, stop: int) -> Tensor:
        return DenseTensor(self.spec, self.array[start:stop])


@dataclass(slots=True)
class RowsTensor:
    """Rows that lie apart: each is copied to its place, they are never stacked first."""

    spec: TensorSpec
    arrays: Sequence[Array]
    shape: Shape
    byte_size: int

    def write(self, target: Array) -> None:
        for place, row in zip(target, self.arrays, strict=True):
            copy(place, row)

    def jobs(self, target: Array) -> list[Job]:
        pairs = zip(target, self.arrays, strict=True)
        return [job for place, row in pairs for job in copy_jobs(place, row)]

    def copies(self, target: DeviceArray) -> list[Pair]:
        return [(target[index], row) for index, row in enumerate(self.arrays)]

    def payload(self) -> memoryview:
        stacked = np.empty(self.shape, self.spec.dtype)
        self.write(stacked)
        return stacked.reshape(-1).view(np.uint8).data

    def rows(self, start: int, stop: int) -> Tensor:
        part = self.arrays[start:stop]
        shape = (len(part), *self.shape[1:])
        return RowsTensor(self.spec, part, shape, byte_size_of(shape, self.spec.datatype))


class BytesTensor:
    """A BYTES tensor; it is framed once, when its bytes or their number are needed."""

    __slots__ = ("_framed", "array", "shape", "spec")

    def __init__(self, spec: TensorSpec, array: Array) -> None:
        self.spec = spec
        self.array = array
        self.shape: Shape = array.shape
        self._framed: bytes | None = None

    def frame(self) -> bytes:
        """Return the framed elements. Raises InputError for other things than strings."""
        if self._framed is None:
            try:
                self._framed = encode_bytes(self.array)
            except InputError as error:
                raise InputError(f"input {self.spec.name!r}: {error}") from None
        return self._framed

    @property
    def byte_size(self) -> int:
        return len(self.frame())

    def write(self, target: Array) -> None:
        target[:] = np.frombuffer(self.frame(), np.uint8)

    def jobs(self, target: Array) -> list[Job]:
        return copy_jobs(target, np.frombuffer(self.frame(), np.uint8))

    def copies(self, target: DeviceArray) -> list[Pair]:
        raise NotImplementedError("BYTES are never in device memory")

    def payload(self) -> memoryview:
        return memoryview(self.frame())

    def rows(self, start: int, stop: int) -> Tensor:
        return BytesTensor(self.spec, self.array[start:stop])


@dataclass(slots=True)
class DeviceTensor:
    """A tensor in device memory, or rows that lie apart there; of another library or ours."""

    spec: TensorSpec
    parts: Sequence[DeviceSource]
    is_rows: bool
    shape: Shape
    byte_size: int

    @classmethod
    def of(cls, spec: TensorSpec, source: DeviceSource) -> DeviceTensor:
        """Return the tensor of a view that was checked."""
        return cls(spec, [source], False, source.shape, byte_size_of(source.shape, source.datatype))

    @classmethod
    def of_rows(cls, spec: TensorSpec, rows: Sequence[DeviceSource]) -> DeviceTensor:
        """Return the tensor of rows that were checked to be alike."""
        shape = (len(rows), *rows[0].shape)
        return cls(spec, rows, True, shape, byte_size_of(shape, spec.datatype))

    def write(self, target: Array) -> None:
        raise NotImplementedError("a tensor on a GPU is never copied to a host model")

    def jobs(self, target: Array) -> list[Job]:
        raise NotImplementedError("a tensor on a GPU is never copied to a host model")

    def copies(self, target: DeviceArray) -> list[Pair]:
        if self.is_rows:
            return [(target[index], row) for index, row in enumerate(self.parts)]
        return [(target, self.parts[0])]

    def payload(self) -> memoryview:
        if self.byte_size:
            raise InputError(
                f"input {self.spec.name!r}: a tensor on a GPU needs a place in the lease; name the "
                "input in lease(shapes=...)"
            )
        return memoryview(b"")

    def rows(self, start: int, stop: int) -> Tensor:
        if self.is_rows:
            return DeviceTensor.of_rows(self.spec, self.parts[start:stop])
        return DeviceTensor.of(self.spec, self.parts[0][start:stop])


@dataclass(slots=True)
class PlacedTensor:
    """A tensor that is in a registered region of the caller's already."""

    spec: TensorSpec
    source: RegionTensor
    shape: Shape
    byte_size: int

    def write(self, target: Array) -> None:
        raise NotImplementedError("a placed tensor is never copied")

    def jobs(self, target: Array) -> list[Job]:
        raise NotImplementedError("a placed tensor is never copied")

    def copies(self, target: DeviceArray) -> list[Pair]:
        raise NotImplementedError("a placed tensor is never copied")

    def payload(self) -> memoryview:
        raise NotImplementedError("a placed tensor is never sent inline")

    def rows(self, start: int, stop: int) -> Tensor:
        if self.spec.datatype == BYTES:
            raise InputError(
                f"input {self.spec.name!r}: a BYTES tensor in a region cannot be split into "
                "batches; send at most max_batch_size rows"
            )
        shape = (stop - start, *self.shape[1:])
        row = self.byte_size // self.shape[0]
        part = RegionTensor(
            self.source.region,
            shape,
            self.source.datatype,
            self.source.offset + start * row,
            (stop - start) * row,
        )
        return PlacedTensor(self.spec, part, shape, part.byte_size)
