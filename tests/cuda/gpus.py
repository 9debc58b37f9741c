"""A GPU and an array library on it, as tests use them: emulated here, real ones elsewhere.

The tests that ask for the fixture ``gpu`` run on both. What they need is little, so that each
backend is little: tensors, views, kernels that are queued, streams, and a stream that is kept
busy for a while.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import warnings

import emulated_cuda
import ml_dtypes
import numpy as np
import pytest
from emulated_cuda import arrays

BUSY = 0.4
"""Seconds that a real stream is kept busy: more than tests take to do what is to happen meanwhile."""

BF16 = np.dtype(ml_dtypes.bfloat16)


class NoGpu(Exception):
    """A library or a GPU is not here; the text says which."""


class EmulatedGpu:
    """The emulation's array library. A stream does nothing before it must."""

    is_emulated = True

    def __init__(self, devices=1):
        self.devices = devices

    # Tensors

    def tensor(self, array, device=0):
        """Return a tensor with these contents, on its way on the current stream."""
        return arrays.from_numpy(array, device=device)

    def empty(self, shape, dtype=np.float32, device=0):
        return arrays.empty(shape, dtype, device=device)

    def take(self, exporter):
        """Take a tensor over by DLPack, for use on the current stream."""
        return arrays.from_dlpack(exporter)

    def take_interface(self, exporter, device=0):
        """Take a tensor over by __cuda_array_interface__."""
        return arrays.from_interface(exporter, device=device)

    def interface_only(self, tensor, **more):
        """Return something that lends a tensor by __cuda_array_interface__ alone."""
        return arrays.InterfaceOnly(tensor, **more)

    def host(self, tensor):
        """Wait for the current stream, and return a numpy copy."""
        return tensor.numpy()

    # Kernels, queued on the current stream

    def fill_(self, tensor, value):
        tensor.fill_(value)

    def add_(self, tensor, value):
        tensor.add_(value)

    def copy(self, tensor):
        """Queue a copy into a new tensor."""
        fresh = arrays.empty(tensor.shape, tensor.dtype, device=tensor.device)
        # As on a real GPU, the queued kernel keeps nothing alive: it has addresses only.
        source, target = tensor.host(), fresh.host()
        handle = arrays.current_handle(tensor.device)
        emulated_cuda.launch(handle, lambda: np.copyto(target, source))
        return fresh

    # Streams

    @contextlib.contextmanager
    def stream(self, device=0):
        """Make a new stream the current one of this thread."""
        stream = arrays.Stream(device=device)
        with arrays.current_stream(stream):
            yield stream

    def block(self, stream):
        """Keep a stream busy; ``open()`` of what is returned ends that."""
        return emulated_cuda.hold(int(stream))


# On a real GPU


class _Busy:
    """What `block` returns on a real GPU: the stream gets free by itself."""

    def open(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass


class TorchGpu:
    """PyTorch, whose caching allocator cuts tensors out of larger allocations."""

    is_emulated = False

    def __init__(self):
        self.torch = torch = _imported("torch")
        with _quietly():
            if not torch.cuda.is_available():
                raise NoGpu(f"this torch ({torch.__version__}) finds no GPU")
        self.devices = torch.cuda.device_count()
        # Peak kilohertz: at a lower clock it takes longer, never less.
        self._cycles = int(BUSY * 1000 * _clock_rate())

        class Stream(torch.cuda.Stream):
            def __int__(self):
                return self.cuda_stream

        self._stream = Stream
        torch.cuda._sleep(1)
        torch.cuda.synchronize()

    def release(self):
        """Give memory back that the allocator keeps."""
        self.torch.cuda.synchronize()
        self.torch.cuda.empty_cache()

    def _place(self, device):
        return f"cuda:{device}"

    # Tensors

    def tensor(self, array, device=0):
        array = np.array(array, order="C")  # writable, else torch warns
        try:
            tensor = self.torch.from_numpy(array.view(np.int16) if array.dtype == BF16 else array)
        except TypeError as error:
            pytest.skip(f"torch {self.torch.__version__}: {error}")
        tensor = tensor.to(self._place(device))
        return tensor.view(self.torch.bfloat16) if array.dtype == BF16 else tensor

    def empty(self, shape, dtype=np.float32, device=0):
        dtype = np.dtype(dtype)
        like = (
            self.torch.bfloat16
            if dtype == BF16
            else self.torch.from_numpy(np.empty(0, dtype)).dtype
        )
        return self.torch.empty(shape, dtype=like, device=self._place(device))

    def take(self, exporter):
        return self.torch.from_dlpack(exporter)

    def take_interface(self, exporter, device=0):
        return self.torch.as_tensor(exporter, device=self._place(device))

    def interface_only(self, tensor, **more):
        return InterfaceOnly(tensor, **more)

    def host(self, tensor):
        tensor = tensor.cpu()
        if tensor.dtype == self.torch.bfloat16:
            return tensor.view(self.torch.int16).numpy().view(BF16)
        return tensor.numpy()

    # Kernels

    def fill_(self, tensor, value):
        tensor.fill_(value)

    def add_(self, tensor, value):
        tensor.add_(value)

    def copy(self, tensor):
        return tensor.clone()

    # Streams

    @contextlib.contextmanager
    def stream(self, device=0):
        stream = self._stream(device=device)
        with self.torch.cuda.stream(stream):
            yield stream

    def block(self, stream):
        """Keep a stream busy for a while."""
        with self.torch.cuda.stream(stream):
            self.torch.cuda._sleep(self._cycles)
        return _Busy()


class CupyGpu:
    """CuPy, whose pool asks CUDA for each size by itself."""

    is_emulated = False

    def __init__(self):
        self.cupy = cupy = _imported("cupy")
        try:
            self.devices = cupy.cuda.runtime.getDeviceCount()
        except Exception as error:
            raise NoGpu(f"this CuPy ({cupy.__version__}) finds no GPU: {error}") from None

        class Stream(cupy.cuda.Stream):
            def __int__(self):
                return self.ptr

        self._stream = Stream
        # Never destroyed: what happens to a stream that dies too early has tests of its own.
        self._streams = []
        self._wait = cupy.RawKernel(_WAIT, "wait")
        self._wait((1,), (1,), (np.int64(1),))
        cupy.cuda.Device(0).synchronize()

    def release(self):
        self.cupy.cuda.Device(0).synchronize()
        self.cupy.get_default_memory_pool().free_all_blocks()
        self.cupy.get_default_pinned_memory_pool().free_all_blocks()

    # Tensors

    def tensor(self, array, device=0):
        try:
            with self.cupy.cuda.Device(device):
                return self.cupy.asarray(np.array(array, order="C"))
        except (TypeError, ValueError) as error:
            pytest.skip(f"CuPy {self.cupy.__version__}: {error}")

    def empty(self, shape, dtype=np.float32, device=0):
        with self.cupy.cuda.Device(device):
            return self.cupy.empty(shape, dtype)

    def take(self, exporter):
        try:
            return self.cupy.from_dlpack(exporter)
        except Exception as error:
            if exporter.dtype != BF16:
                raise
            pytest.skip(f"CuPy {self.cupy.__version__}: {error}")

    def take_interface(self, exporter, device=0):
        with self.cupy.cuda.Device(device):
            return self.cupy.asarray(exporter)

    def interface_only(self, tensor, **more):
        return InterfaceOnly(tensor, **more)

    def host(self, tensor):
        return self.cupy.asnumpy(tensor)

    # Kernels

    def fill_(self, tensor, value):
        tensor.fill(value)

    def add_(self, tensor, value):
        tensor += value

    def copy(self, tensor):
        return tensor.copy()

    # Streams

    @contextlib.contextmanager
    def stream(self, device=0):
        with self.cupy.cuda.Device(device):
            stream = self._stream(non_blocking=True)
        self._streams.append(stream)
        with stream:
            yield stream

    def block(self, stream):
        """Keep a stream busy for a while."""
        with stream:
            self._wait((1,), (1,), (np.int64(BUSY * 1e9),))
        return _Busy()


class JaxGpu:
    """JAX, as far as it lends and borrows; its arrays cannot be written."""

    def __init__(self):
        # Before it is imported: by default it takes most of the GPU's memory at once.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        os.environ.setdefault("XLA_PYTHON_CLIENT_ALLOCATOR", "platform")
        self.jax = jax = _imported("jax")
        self._dlpack = _imported("jax.dlpack")
        try:
            with _quietly():
                self.device = jax.devices("cuda")[0]
        except RuntimeError as error:
            raise NoGpu(f"this JAX ({jax.__version__}) finds no GPU: {error}") from None

        def slowly(tensor, ones):
            def step(_, matrix):
                return matrix @ ones / ones.shape[0]

            return tensor + 0 * jax.lax.fori_loop(0, 150, step, ones)[0, 0]

        self._slowly = jax.jit(slowly)
        self._ones = self.tensor(np.ones((4096, 4096), np.float32))
        self.slow_copy(self.tensor(np.ones(4, np.float32))).block_until_ready()

    def release(self):
        pass  # its allocator keeps nothing

    def tensor(self, array):
        return self.jax.device_put(array, self.device)

    def take(self, exporter):
        return self._dlpack.from_dlpack(exporter)

    def slow_copy(self, tensor):
        """Queue a copy that takes a while. The first one of a shape is compiled before."""
        return self._slowly(tensor, self._ones)

    def host(self, tensor):
        return np.asarray(tensor)


class InterfaceOnly:
    """Something that lends a tensor by __cuda_array_interface__ alone."""

    def __init__(self, tensor, **more):
        own = tensor.__cuda_array_interface__
        self.tensor = tensor
        # torch's is of version 2, which knew no streams.
        self.__cuda_array_interface__ = {**own, **({"version": 3} if more else {}), **more}


_WAIT = r"""
extern "C" __global__ void wait(long long nanoseconds) {
  long long start, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); while (now - start < nanoseconds);
}
"""

LIBRARIES = {"torch": TorchGpu, "cupy": CupyGpu, "jax": JaxGpu}
KERNEL_LIBRARIES = ("torch", "cupy")
"""Those that can do all that the fixture ``gpu`` promises."""


@functools.cache
def open_gpu(name):
    """Return a library on the real GPU, the same each time. Raises NoGpu."""
    reason = why_no_gpu()
    if reason is not None:
        raise NoGpu(reason)
    _opened.append(opened := LIBRARIES[name]())
    return opened


def release_caches():
    """Have all libraries give back the memory that they keep for later."""
    gc.collect()
    for each in _opened:
        each.release()


_opened = []


@functools.cache
def why_no_gpu():
    """Return why this process can use no real GPU; None if it can."""
    try:
        runtime = importlib.import_module("cuda.bindings.runtime")
        status, count = runtime.cudaGetDeviceCount()
    except (ImportError, RuntimeError) as error:
        return f"no cuda-python, or no driver that it finds: {error}"
    if status != 0:
        return f"there is no GPU: {status.name}"
    return None if count else "there is no GPU"


def _clock_rate():
    """Return the peak frequency of GPU 0 in kilohertz."""
    runtime = importlib.import_module("cuda.bindings.runtime")
    status, rate = runtime.cudaDeviceGetAttribute(runtime.cudaDeviceAttr.cudaDevAttrClockRate, 0)
    assert status == 0, status
    return rate


def _imported(name):
    try:
        with _quietly():
            return importlib.import_module(name)
    except ImportError as error:
        raise NoGpu(f"{name} is not installed: {error}") from None


@contextlib.contextmanager
def _quietly():
    """What other packages warn of while they are imported is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
