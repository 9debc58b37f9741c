"""An array library on the emulated GPU, as PyTorch or CuPy are on a real one.

It allocates, has streams that are current per thread, queues kernels, and lends its memory by
DLPack and by `__cuda_array_interface__`. What it asks of CUDA is noted as its own, so that tests
can tell it from what the library does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from . import _capsules, _control, runtime
from ._array_memory import (
    Borrowed,
    Storage,
    Stream,
    current_handle,
    current_stream,
    make_wait,
    ok,
    on_device,
)
from ._capsules import CUDA, CUDA_MANAGED, IS_COPIED, READ_ONLY, Description

__all__ = [
    "DeviceTensor",
    "Export",
    "InterfaceOnly",
    "Stream",
    "current_handle",
    "current_stream",
    "empty",
    "exports",
    "forget_exports",
    "from_dlpack",
    "from_interface",
    "from_numpy",
]

_LEGACY = runtime.cudaStreamLegacy
_NO_SYNC = -1
_UNSET: Any = object()
_DEVICE_TYPES = {"device": CUDA, "pool": CUDA, "vmm": CUDA, "managed": CUDA_MANAGED}


@dataclasses.dataclass(frozen=True)
class Export:
    """How a tensor lends itself by DLPack.

    Attributes:
        is_old: it knows no max_version, as exporters before DLPack 1.0.
        has_null_strides: strides are NULL if it is compact, as was allowed before 1.2.
        has_byte_offset: data points to the allocation, and byte_offset leads to the tensor.
        is_read_only: the read-only flag is set.
    """

    is_old: bool = False
    has_null_strides: bool = False
    has_byte_offset: bool = False
    is_read_only: bool = False


class DeviceTensor:
    """A tensor in the memory of an emulated GPU. Strides are in bytes, as numpy's."""

    def __init__(
        self,
        storage: Storage | Borrowed,
        address: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        dtype: np.dtype[Any],
        export: Export = Export(),  # it is immutable
    ) -> None:
        self.storage = storage
        self.address = address
        self.shape, self.strides, self.dtype = shape, strides, dtype
        self.export = export

    @property
    def device(self) -> int:
        return self.storage.device

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"<DeviceTensor {self.dtype} {self.shape} on GPU {self.device}>"

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("memory of a GPU is no numpy array; call numpy()")

    # Views

    def __getitem__(self, index: Any) -> Self:
        """Return a view; of one item, too."""
        index = index if isinstance(index, tuple) else (index,)
        if not any(each is ... for each in index):
            index = (*index, ...)  # or numpy would return a number
        return self._like(self.host()[index])

    def transpose(self, *axes: int) -> Self:
        return self._like(self.host().transpose(*axes))

    def broadcast_to(self, *shape: int) -> Self:
        return self._like(np.broadcast_to(self.host(), shape))

    def as_strided(self, shape: Sequence[int], strides: Sequence[int]) -> Self:
        """Return a view with any strides, in bytes."""
        return type(self)(
            self.storage, self.address, tuple(shape), tuple(strides), self.dtype, self.export
        )

    def exporting(self, **options: bool) -> Self:
        """Return a view that lends itself in another way, see `Export`."""
        view = self.as_strided(self.shape, self.strides)
        view.export = dataclasses.replace(self.export, **options)
        return view

    def host(self) -> np.ndarray:
        """Return a numpy view of the memory as it is now, for kernels; nothing waits for it."""
        if self.nbytes == 0:
            empty = np.empty(1, self.dtype)
            return np.lib.stride_tricks.as_strided(empty, self.shape, self.strides)
        reach = [s * (n - 1) for s, n in zip(self.strides, self.shape, strict=True)]
        low = self.address + sum(r for r in reach if r < 0)
        high = self.address + sum(r for r in reach if r > 0) + self.dtype.itemsize
        flat = _control.host_view(low, high - low)
        return np.ndarray(self.shape, self.dtype, flat, self.address - low, self.strides)

    def _like(self, array: np.ndarray) -> Self:
        moved = array.ctypes.data - self.host().ctypes.data if array.size else 0
        return type(self)(
            self.storage, self.address + moved, array.shape, array.strides, array.dtype, self.export
        )

    # Kernels, queued on the current stream

    def fill_(self, value: Any) -> Self:
        """Set all items, when the stream gets there."""
        return self._launch(lambda: np.copyto(self.host(), value, casting="unsafe"))

    def add_(self, other: Any) -> Self:
        """Add a number or a tensor, when the stream gets there."""

        def kernel() -> None:
            here = self.host()
            there = other.host() if isinstance(other, DeviceTensor) else other
            np.copyto(here, here + there, casting="unsafe")

        return self._launch(kernel)

    def copy_(self, other: DeviceTensor) -> Self:
        """Copy a tensor into this one, when the stream gets there."""
        return self._launch(lambda: np.copyto(self.host(), other.host(), casting="unsafe"))

    def _launch(self, kernel: Any) -> Self:
        if self.export.is_read_only:
            raise ValueError("this tensor is read-only")
        with on_device(self.device):
            _control.launch(current_handle(self.device), kernel)
        return self

    def numpy(self) -> np.ndarray:
        """Wait for the current stream, and return a copy in the host's memory."""
        with on_device(self.device):
            ok(runtime.cudaStreamSynchronize(current_handle(self.device)))
        return self.host().copy()

    # DLPack

    def __dlpack_device__(self) -> tuple[int, int]:
        return _DEVICE_TYPES[self.storage.kind], self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = _UNSET,
        dl_device: tuple[int, int] | None = _UNSET,
        copy: bool | None = _UNSET,
    ) -> Any:
        if self.export.is_old and any(
            each is not _UNSET for each in (max_version, dl_device, copy)
        ):
            raise TypeError("__dlpack__() got an unexpected keyword argument")
        if dl_device not in (_UNSET, None, self.__dlpack_device__()):
            raise BufferError(f"this tensor is on {self.__dlpack_device__()}, not {dl_device}")
        is_versioned = max_version not in (_UNSET, None) and max_version >= (1, 0)
        if self.export.is_read_only and not is_versioned:
            raise BufferError("a read-only tensor cannot be exported without the flag for it")
        source, flags = self, READ_ONLY if self.export.is_read_only else 0
        if copy is True:
            source, flags = self._copied(), IS_COPIED
        self._make_consumer_wait(stream)
        return _capsules.export(source._describe(flags), source, is_versioned=is_versioned)

    def _make_consumer_wait(self, stream: int | None) -> None:
        """Let the consumer's stream wait for what is queued here: what the protocol asks for."""
        if stream == 0:
            raise ValueError("stream=0 may mean three things, so it is not allowed; use 1 or 2")
        if stream is not None and stream < _NO_SYNC:
            raise ValueError(f"stream={stream} is no stream")
        consumer = _LEGACY if stream is None else stream
        if consumer not in (_NO_SYNC, current_handle(self.device)):
            make_wait(consumer, current_handle(self.device), self.device)

    def _copied(self) -> DeviceTensor:
        copied = empty(self.shape, self.dtype, device=self.device)
        return copied.copy_(self)

    def _describe(self, flags: int) -> Description:
        size = self.dtype.itemsize
        strides: tuple[int, ...] | None = tuple(s // size for s in self.strides)
        if self.export.has_null_strides and self.host().flags.c_contiguous:
            strides = None
        begin = self.storage.address if self.export.has_byte_offset else self.address
        return Description(
            data=begin if self.nbytes else 0,
            shape=self.shape,
            strides=strides,
            dtype=self.dtype,
            device_type=self.__dlpack_device__()[0],
            device=self.device,
            byte_offset=self.address - begin if self.nbytes else 0,
            flags=flags,
        )

    # The other way to lend memory

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.interface(stream=current_handle(self.device))

    def interface(self, **more: Any) -> dict[str, Any]:
        """Return version 3 of the interface, without `stream` unless it is given."""
        is_compact = self.host().flags.c_contiguous
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address if self.nbytes else 0, self.export.is_read_only),
            "strides": None if is_compact else self.strides,
            "version": 3,
            **more,
        }


class InterfaceOnly:
    """Something that lends a tensor by `__cuda_array_interface__` alone."""

    def __init__(self, tensor: DeviceTensor, **more: Any) -> None:
        """Lend a tensor.

        Args:
            tensor: what is lent.
            more: ``stream=``, a handle or None; or anything else to put into the interface.
        """
        self.tensor = tensor
        self.__cuda_array_interface__ = tensor.interface(**more)


def empty(
    shape: Sequence[int], dtype: Any = np.float32, *, device: int = 0, memory: str = "device"
) -> DeviceTensor:
    """Return a tensor of which nothing is known.

    Args:
        shape: its shape.
        dtype: its dtype.
        device: ordinal of the GPU.
        memory: ``"device"``, or ``"managed"``, ``"pool"``, ``"vmm"``: see `allocate`.
    """
    dtype = np.dtype(dtype)
    strides = _compact(tuple(shape), dtype.itemsize)
    storage = Storage(math.prod(shape) * dtype.itemsize, device, memory)
    return DeviceTensor(storage, storage.address, tuple(shape), strides, dtype)


def from_numpy(array: Any, *, device: int = 0, memory: str = "device") -> DeviceTensor:
    """Copy an array to the GPU, on the current stream."""
    array = np.asarray(array)
    tensor = empty(array.shape, array.dtype, device=device, memory=memory)
    taken = array.copy()
    return tensor._launch(lambda: np.copyto(tensor.host(), taken))


def from_dlpack(lender: Any, *, stream: Stream | int | None = None) -> DeviceTensor:
    """Borrow a tensor, as consumers of DLPack 1.0 are told to do it.

    Args:
        lender: anything that has `__dlpack__`.
        stream: where it is going to be used; the current stream by default. With that, a lender
            of this library sees no reason to wait: its own current stream is the same.
    """
    device_type, device = lender.__dlpack_device__()
    assert device_type in (CUDA, CUDA_MANAGED), device_type
    stream = current_handle(device) if stream is None else int(stream)
    try:
        capsule = lender.__dlpack__(stream=stream, max_version=_capsules.VERSION)
    except TypeError:
        capsule = lender.__dlpack__(stream=stream)
    tensor, finish = _capsules.take(capsule)
    assert (tensor.device_type, tensor.device) == (device_type, device)
    kind = {CUDA: "device", CUDA_MANAGED: "managed"}[tensor.device_type]
    strides = _compact(tensor.shape, 1) if tensor.strides is None else tensor.strides
    return DeviceTensor(
        Borrowed(tensor.data, device, kind, finish),
        tensor.data + tensor.byte_offset,
        tensor.shape,
        tuple(stride * tensor.dtype.itemsize for stride in strides),
        tensor.dtype,
        Export(is_read_only=bool(tensor.flags & READ_ONLY)),
    )


def from_interface(lender: Any, *, device: int = 0) -> DeviceTensor:
    """Borrow a tensor, as consumers of `__cuda_array_interface__` version 3 are told to do it."""
    interface = lender.__cuda_array_interface__
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    address, is_read_only = interface["data"]
    strides = interface.get("strides") or _compact(shape, dtype.itemsize)
    stream = interface.get("stream")
    assert stream != 0, "stream 0 may mean three things, so it is not allowed"
    if stream is not None and stream != current_handle(device):
        make_wait(current_handle(device), stream, device)
    return DeviceTensor(
        Borrowed(address, device, "device", [lender]),
        address,
        shape,
        tuple(strides),
        dtype,
        Export(is_read_only=is_read_only),
    )


def _compact(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    strides: list[int] = []
    for length in reversed(shape):
        strides.append(size)
        size *= max(1, length)
    return tuple(reversed(strides))


def exports() -> int:
    """Return how many DLPack tensors are lent and not given back."""
    return len(_capsules.exported)


def forget_exports() -> None:
    """Let go of what was never given back."""
    _capsules.forget()
