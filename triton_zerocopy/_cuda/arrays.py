"""`DeviceArray`: a tensor in device memory of this library, for other libraries to use."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from .._datatypes import DTYPES, Array, Shape, byte_size_of
from .._errors import InputError
from . import dlpack
from .cudart import LEGACY_STREAM, PER_THREAD_STREAM
from .memory import DeviceRoot
from .transfer import run_copies
from .views import DeviceView, packed_strides

_NO_STREAM: Final = -1
"""DLPack's way of a consumer to say that it needs no order."""


class DeviceArray:
    """A tensor in the memory of a GPU.

    torch, CuPy, JAX and others take it without a copy: ``torch.from_dlpack(array)``,
    ``cupy.from_dlpack(array)``, ``jax.dlpack.from_dlpack(array)``, ``cupy.asarray(array)``.
    Whatever they make of it keeps the memory alive. Its contents are ready on every stream.

    The streams that they use it on are known here by the DLPack protocol; for an array taken
    through ``__cuda_array_interface__`` it is taken to be the legacy default stream. Work
    queued there is waited for before the memory is used for anything else.

    Attributes:
        shape: its shape.
        datatype: Triton's name of its datatype, for example ``"FP32"``.
        device_id: ordinal of the GPU in this process.
    """

    __slots__ = ("_offset", "_root", "datatype", "shape")

    def __init__(self, root: DeviceRoot, offset: int, shape: Shape, datatype: str) -> None:
        self._root = root
        self._offset = offset
        self.shape = shape
        self.datatype = datatype

    @property
    def device_id(self) -> int:
        """Ordinal of the GPU in this process."""
        return self._root.device.id

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype of its elements."""
        return DTYPES[self.datatype]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return byte_size_of(self.shape, self.datatype)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array without dimensions has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<DeviceArray {list(self.shape)} {self.datatype} on cuda:{self.device_id}>"

    def __getitem__(self, key: int | slice) -> DeviceArray:
        """Return a row, or rows that follow each other, without a copy."""
        if not self.shape:
            raise TypeError("an array without dimensions has no rows")
        start, stop, step = _bounds(key, self.shape[0])
        if step != 1:
            raise TypeError("rows are taken one after another; for more use torch or CuPy")
        shape = self.shape[1:] if isinstance(key, int) else (stop - start, *self.shape[1:])
        row = byte_size_of(self.shape[1:], self.datatype)
        return DeviceArray(self._root, self._offset + start * row, shape, self.datatype)

    def __setitem__(self, key: object, value: object) -> None:
        raise TypeError(
            "a DeviceArray is written through torch.from_dlpack, cupy.asarray or the like, or by "
            "`await array.write(value)`"
        )

    def __array__(self, *arguments: object, **options: object) -> Array:
        raise TypeError("a DeviceArray is in GPU memory; `await array.numpy()` copies it")

    def retyped(self, shape: Shape, datatype: str) -> DeviceArray:
        """Return the same bytes as another tensor."""
        return DeviceArray(self._root, self._offset, shape, datatype)

    # To and from the host

    async def numpy(self) -> Array:
        """Copy it to the host. Work queued on the streams that use it comes first.

        Raises:
            CudaError: the copy failed.

        Cancellation: safe.
        """
        target = np.empty(self.shape, self.dtype)
        await self._root.device.begin(
            lambda finish: run_copies(self._root.device, [(target, self)], finish)
        )
        return target

    async def write(self, value: Array) -> None:
        """Copy a host array of its shape and dtype into it.

        Work queued on the streams that use it comes first.

        Raises:
            InputError: another shape or dtype.
            CudaError: the copy failed.

        Cancellation: a copy that has begun goes on to its end; leave ``value`` alone until
        then.
        """
        if value.shape != self.shape or value.dtype.newbyteorder("=") != self.dtype:
            raise InputError(
                f"{self!r}: got {value.dtype} of shape {list(value.shape)}, nothing is cast or "
                "broadcast"
            )
        await self._root.device.begin(
            lambda finish: run_copies(self._root.device, [(self, value)], finish)
        )

    # For other libraries

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device_id

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """Export it (DLPack, Python specification); ``stream`` is where it will be used."""
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError(f"{self!r} cannot be exported to another device; copy it there")
        if copy:
            raise BufferError(f"{self!r} is exported without a copy only; copy it afterwards")
        if stream == 0:
            raise ValueError("DLPack: stream 0 is ambiguous; 1 is the legacy default stream")
        if stream is None:
            stream = LEGACY_STREAM
        self._root.streams.add(PER_THREAD_STREAM if stream == _NO_STREAM else int(stream))
        return dlpack.give(
            self.view(), is_versioned=max_version is not None and max_version >= (1,)
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        if self.dtype.kind == "V":
            raise AttributeError(
                f"the CUDA array interface has no {self.datatype}; use DLPack (from_dlpack)"
            )
        self._root.streams.add(LEGACY_STREAM)
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.view().address if self.nbytes else 0, False),
            "strides": None,
            "version": 3,
            "stream": None,  # ready on every stream
        }

    # For this library

    def bind(self) -> None:
        """In the device's thread: see to it that there is memory."""
        self._root.bind()

    def view(self) -> DeviceView:
        """Describe it; what is queued on its streams comes before."""
        return DeviceView(
            self._root.address + self._offset,
            self.shape,
            packed_strides(self.shape, self.dtype.itemsize),
            self.datatype,
            self.device_id,
            keeper=self._root,
            after=frozenset(self._root.streams),
        )


def _bounds(key: int | slice, size: int) -> tuple[int, int, int]:
    if isinstance(key, slice):
        start, stop, step = key.indices(size)
        return start, max(start, stop), step
    if not isinstance(key, int):
        raise TypeError(f"rows are taken by an int or a slice, not {type(key).__name__}")
    index = key + size if key < 0 else key
    if not 0 <= index < size:
        raise IndexError(f"row {key} of {size}")
    return index, index + 1, 1
