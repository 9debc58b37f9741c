"""Memory mappings at addresses of our choice, which Python's mmap module does not offer."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

SHM = Path("/dev/shm")

_NONE, _READ_WRITE = 0, 3
_SHARED, _PRIVATE, _FIXED, _ANONYMOUS, _NORESERVE = 0x01, 0x02, 0x10, 0x20, 0x4000
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def map_visible(length: int, file: int | None = None) -> int:
    """Map memory that the host can read and write: a file's, or nobody else's."""
    if file is None:
        return _map(None, length, _READ_WRITE, _PRIVATE | _ANONYMOUS | _NORESERVE, -1)
    return _map(None, length, _READ_WRITE, _SHARED, file)


def map_hidden(length: int, file: int, address: int | None = None) -> int:
    """Map a file so that touching it is a SIGSEGV, as touching a GPU's memory is."""
    return _map(address, length, _NONE, _SHARED | (_FIXED if address else 0), file)


def reserve(address: int, length: int) -> None:
    """Unmap, and keep the addresses from being used for anything else."""
    _map(address, length, _NONE, _PRIVATE | _ANONYMOUS | _NORESERVE | _FIXED, -1)


def unmap(address: int, length: int) -> None:
    _libc.munmap(address, length)


def create_file(name: str, length: int) -> int:
    """Make a new file in /dev/shm and return its descriptor."""
    file = os.open(SHM / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.ftruncate(file, length)
    return file


def open_file(name: str) -> int:
    return os.open(SHM / name, os.O_RDWR | os.O_CLOEXEC)


def remove_file(name: str) -> None:
    (SHM / name).unlink(missing_ok=True)


def sweep() -> None:
    """Remove the memory of emulated GPUs whose process was killed."""
    for path in SHM.glob("emucuda.*"):
        pid = path.name.split(".")[1]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            with contextlib.suppress(OSError):
                path.unlink()


def _map(address: int | None, length: int, protection: int, flags: int, file: int) -> int:
    mapped = _libc.mmap(address, length, protection, flags, file, 0)
    if mapped is None or mapped == _FAILED:
        raise OSError(ctypes.get_errno(), "mmap failed")
    return mapped
