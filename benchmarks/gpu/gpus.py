"""The GPU as the benchmarks use it by themselves: tensors of somebody's library, plain copies."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from typing import Any

import numpy as np

from ..workloads import Array
from .modes import Mode

FLOAT = np.dtype(np.float32)


def runtime() -> Any:
    """Return cuda-python's runtime functions, or what stands for them."""
    return importlib.import_module("cuda.bindings.runtime")


def ok(result: tuple[Any, ...]) -> Any:
    """Return what a call returned besides its status; raise unless that is success."""
    status, *values = result
    if status != runtime().cudaError_t.cudaSuccess:
        raise RuntimeError(f"CUDA answered {status.name}")
    return values[0] if values else None


class Gpu:
    """GPU 0, and a stream on it for the copies that a contender makes by itself.

    Attributes:
        library: whose tensors these are.
        has_dlpack: whether they lend themselves by DLPack.
    """

    library = "cuda-python"
    has_dlpack = False

    def __init__(self) -> None:
        ok(runtime().cudaSetDevice(0))
        self._stream = ok(runtime().cudaStreamCreateWithFlags(runtime().cudaStreamNonBlocking))

    def tensor(self, array: Array) -> Any:
        """Return a tensor on the GPU with these contents."""
        tensor = Memory(array.shape)
        self.upload(tensor, array)
        return tensor

    def address(self, tensor: Any) -> int:
        """Return where a tensor begins."""
        return int(tensor.__cuda_array_interface__["data"][0])

    # Copies that are done when they return, as torch's cpu() and copy_() are

    def upload(self, tensor: Any, array: Array) -> None:
        """Copy from the host."""
        self.copy(self.address(tensor), array.ctypes.data, array.nbytes)

    def download(self, array: Array, tensor: Any) -> None:
        """Copy to the host."""
        self.copy(array.ctypes.data, self.address(tensor), array.nbytes)

    def copy(self, target: int, source: int, byte_size: int) -> None:
        """Copy from address to address, wherever they are."""
        kind = runtime().cudaMemcpyKind.cudaMemcpyDefault
        ok(runtime().cudaMemcpyAsync(target, source, byte_size, kind, self._stream))
        ok(runtime().cudaStreamSynchronize(self._stream))


class TorchGpu(Gpu):
    """With tensors of torch."""

    library = "torch"
    has_dlpack = True

    def tensor(self, array: Array) -> Any:
        torch = importlib.import_module("torch")
        return torch.from_numpy(array.copy()).to("cuda:0")


class CupyGpu(Gpu):
    """With arrays of CuPy."""

    library = "cupy"
    has_dlpack = True

    def tensor(self, array: Array) -> Any:
        cupy = importlib.import_module("cupy")
        taken = cupy.asarray(array)
        cupy.cuda.Device(0).synchronize()
        return taken


class EmulatedGpu(Gpu):
    """With arrays of the emulation."""

    library = "emulated_cuda.arrays"
    has_dlpack = True

    def tensor(self, array: Array) -> Any:
        arrays = importlib.import_module("emulated_cuda.arrays")
        taken = arrays.from_numpy(array)
        taken.numpy()  # what is queued is done
        return taken


class Memory:
    """Memory of cudaMalloc that lends itself as a tensor, where there is no array library."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._address = int(ok(runtime().cudaMalloc(int(np.prod(shape)) * FLOAT.itemsize)))

    def __del__(self) -> None:
        runtime().cudaFree(self._address)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self._shape,
            "typestr": FLOAT.str,
            "data": (self._address, False),
            "version": 3,
            "stream": None,  # ready on every stream
        }


def open_gpu(mode: Mode) -> Gpu:
    """Return the GPU, with tensors of the library that is installed."""
    if mode.is_emulated:
        return EmulatedGpu()
    if importlib.util.find_spec("torch") is not None:
        return TorchGpu()
    return CupyGpu() if importlib.util.find_spec("cupy") is not None else Gpu()


class Pinned:
    """Arrays in pinned memory, which the GPU copies from and to by itself."""

    def __init__(self) -> None:
        self._addresses: list[int] = []

    def like(self, array: Array) -> Array:
        """Return an array with the same contents."""
        address = int(ok(runtime().cudaHostAlloc(array.nbytes, 0)))
        self._addresses.append(address)
        memory = (ctypes.c_char * array.nbytes).from_address(address)
        pinned: Array = np.frombuffer(memory, array.dtype).reshape(array.shape)
        pinned[...] = array
        return pinned

    def free(self) -> None:
        """Free all of them; nobody uses them any more."""
        while self._addresses:
            ok(runtime().cudaFreeHost(self._addresses.pop()))
