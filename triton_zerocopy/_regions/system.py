"""`SystemRegion`: POSIX shared memory, made and mapped without a resource tracker.

Rules this module keeps (each has a reason in how Triton maps client memory):

- ``O_CREAT | O_EXCL`` with an unguessable, single-use name and mode 0600.
- ``posix_fallocate`` reserves every page: a full /dev/shm is an error here instead of a
  SIGBUS in this process or in the server, which ``ftruncate`` would allow.
- Never resized, never renamed. The name is unlinked when the region is freed, by the
  process that made it and by no forked child.

After an error in the constructor nothing is left: no file, no descriptor, no reservation.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import sys
import warnings
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .._datatypes import (
    BYTES,
    Array,
    datatype_of,
    decode_bytes,
    dtype_of,
    encode_bytes,
)
from .._errors import CapacityError, InputError, RegionClosed, RegionError
from .base import Region, RegionHost, check_shape, made_at
from .budget import Budget
from .names import new_name

SHM_DIRECTORY: Final = "/dev/shm"  # noqa: S108 # what shm_open uses on Linux


class SystemRegion(Region):
    """A POSIX shared memory object, mapped by this process and by the server.

    Creating one blocks (a millisecond for each 2 MB or so): run it off the loop.

    Attributes:
        key: the object's name for ``shm_open``.
    """

    memory = "system"
    is_host_accessible = True
    is_device_accessible = False

    def __init__(
        self,
        byte_size: int,
        *,
        owner_id: str,
        budget: Budget,
        mode: int = 0o600,
        gid: int | None = None,
        host: RegionHost | None = None,
        place: str = "",
    ) -> None:
        if byte_size <= 0:
            raise InputError(f"a region has at least 1 byte, got byte_size={byte_size}")
        if sys.platform != "linux":
            raise RegionError("shared memory needs Linux; use memory='wire' here")
        name = new_name(owner_id)
        super().__init__(name, byte_size, host)
        self.key = f"/{name}"
        token = budget.reserve(byte_size)
        try:
            self._map: mmap.mmap | None = _create(self._path, byte_size, mode, gid)
        except BaseException:
            budget.release(token)
            raise
        # The reservation ends with the mapping, which living arrays keep, not with free().
        weakref.finalize(self._map, budget.release, token).atexit = False
        self._pid = os.getpid()  # a forked child never removes what its parent owns
        self._unlink = weakref.finalize(self, _abandoned, self._path, self._pid, place)

    @property
    def _path(self) -> str:
        return f"{SHM_DIRECTORY}{self.key}"

    def root(self, streams: set[int] | None = None) -> Array:  # noqa: ARG002 # host memory has none
        if self._map is None:
            raise RegionClosed("the region is closed; make a new one")
        return np.frombuffer(self._map, np.uint8)

    def free(self) -> None:
        if self._unlink.detach() is not None and os.getpid() == self._pid:
            _unlink(self._path)
        # Dropped, not closed: arrays that are still alive keep the mapping, and the last
        # of them unmaps it. mmap.close() would raise BufferError while one lives.
        self._map = None

    # Views and copies

    def array(self, shape: Sequence[int], dtype: npt.DTypeLike, *, offset: int = 0) -> Array:
        self._check_open()
        wanted = np.dtype(dtype)
        if wanted.hasobject or wanted.itemsize == 0:
            raise InputError(f"an array over memory needs items of a fixed size, not {wanted}")
        sizes = check_shape(shape)
        byte_size = math.prod(sizes) * wanted.itemsize
        self.check_range(offset, byte_size)
        return self.root()[offset : offset + byte_size].view(wanted).reshape(sizes)

    async def write(self, value: Array | bytes | memoryview, *, offset: int = 0) -> int:
        self._check_open()
        self._check_quiet()
        source = value if isinstance(value, np.ndarray) else np.frombuffer(value, np.uint8)
        if source.dtype.kind in "OSTU":
            source = np.frombuffer(encode_bytes(source), np.uint8)
        elif datatype_of(source.dtype) is None:
            raise InputError(f"cannot write items of dtype {source.dtype}; Triton has no such type")
        target = self.array(source.shape, source.dtype, offset=offset)
        await self._copy(lambda: np.copyto(target, source), source.nbytes)
        return source.nbytes

    async def read(self, shape: Sequence[int], datatype: str, *, offset: int = 0) -> Array:
        self._check_open()
        if datatype == BYTES:
            self.check_range(offset, 0)
            sizes = check_shape(shape)
            raw = self.root()[offset:]
            decoded: Array = await self._copy(
                lambda: decode_bytes(raw.tobytes(), sizes, exact=False)[0], raw.nbytes
            )
            return decoded
        view = self.array(shape, dtype_of(datatype), offset=offset)
        copied: Array = await self._copy(view.copy, view.nbytes)
        return copied

    def _copy(self, copy: Callable[[], Any], byte_size: int) -> Awaitable[Any]:
        if self._host is None:
            raise RegionClosed("this region belongs to no client")
        return self._host.run_copy(copy, byte_size)


def _create(path: str, byte_size: int, mode: int, gid: int | None) -> mmap.mmap:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise explain(error, byte_size) from error
    try:
        try:
            if gid is not None:
                os.fchown(descriptor, -1, gid)
            # After chown, which clears bits, and free of the umask.
            os.fchmod(descriptor, mode)
            os.posix_fallocate(descriptor, 0, byte_size)
            mapped = _map(descriptor, byte_size)
            # The first use of a page takes longer than copying it. MAP_POPULATE and madvise
            # would do, but keep Python 3.11's other threads waiting, and so the event loop.
            np.frombuffer(mapped, np.uint8)[:: mmap.PAGESIZE] = 0
            return mapped
        finally:
            os.close(descriptor)
    except BaseException as error:
        _unlink(path)
        if isinstance(error, OSError):
            raise explain(error, byte_size) from error
        raise


def _map(descriptor: int, byte_size: int) -> mmap.mmap:
    options: dict[str, Any] = {}
    if sys.version_info >= (3, 13):
        options["trackfd"] = False  # one descriptor less for each region
    return mmap.mmap(descriptor, byte_size, mmap.MAP_SHARED, **options)


def explain(error: OSError, byte_size: int) -> RegionError:
    """Return what a caller sees when shared memory cannot be made."""
    if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG):
        return CapacityError(
            f"{byte_size} bytes of shared memory were wanted, {SHM_DIRECTORY} has "
            f"{_free_bytes()} free; make it larger (docker run --shm-size=..., a Memory emptyDir "
            "with a sizeLimit in Kubernetes), use fewer slots, or remove what others left there",
            needed=byte_size,
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return CapacityError(
            f"no file descriptor is left to create shared memory ({error.strerror}); raise "
            "`ulimit -n` or use fewer slots",
            needed=byte_size,
        )
    if error.errno == errno.ENOENT:
        return RegionError(
            f"{SHM_DIRECTORY} is not there; mount a tmpfs on it, or use memory='wire'"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RegionError(
            f"shared memory cannot be created in {SHM_DIRECTORY} ({error.strerror}); check its "
            "mode, shm_mode and shm_gid, or use memory='wire'"
        )
    return RegionError(f"shared memory of {byte_size} bytes could not be created: {error.strerror}")


def _free_bytes() -> int | str:
    try:
        stat = os.statvfs(SHM_DIRECTORY)
    except OSError:
        return "an unknown number of bytes"
    return stat.f_bavail * stat.f_frsize


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _abandoned(path: str, pid: int, place: str) -> None:
    """Last resort: the region was collected or the process ends, and nobody closed it."""
    if os.getpid() != pid:
        return
    _unlink(path)
    warnings.warn(
        f"shared memory was never closed{made_at(place)}; use `async with` or `await ....aclose()`",
        ResourceWarning,
        stacklevel=2,
    )
