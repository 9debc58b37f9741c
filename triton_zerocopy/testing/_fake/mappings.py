"""Memory of a client in this process. It dies of touching what is unmapped, as a server does."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import sys
from dataclasses import dataclass
from typing import NoReturn, Protocol

from .refusals import internal, invalid

_DIRECTORY = "/dev/shm"  # noqa: S108
_LONGEST_NAME = 255
_SIZE_MAX = 2**64


class Mapping(Protocol):
    """Memory of a client that this process can read and write.

    Attributes:
        on_device: Whether it is a GPU's.
    """

    on_device: bool

    def read(self, position: int, byte_size: int) -> bytes:
        """Return bytes; kills the process if they are not mapped."""
        ...

    def write(self, position: int, data: bytes) -> None:
        """Write bytes; kills the process if they are not mapped."""
        ...

    def close(self) -> None:
        """Unmap it."""
        ...


class SystemMapping:
    """Part of a POSIX shared memory object.

    Args:
        name: What the region is called in messages.
        file: The opened object; it is closed.
        offset: Where the part begins.
        byte_size: How long it is.

    Raises:
        Refusal: There is no such part.
    """

    on_device = False

    def __init__(self, name: str, file: int, offset: int, byte_size: int) -> None:
        try:
            failed = f"failed to register shared memory region '{name}'"
            file_size = os.fstat(file).st_size
            if (offset + byte_size) % _SIZE_MAX > file_size:
                raise invalid(f"{failed}: invalid args")
            # What mmap says to the server, with its missing space.
            if byte_size == 0 or offset % mmap.PAGESIZE:
                raise invalid(f"{failed}: unable to process address spaceInvalid argument")
            if byte_size > file_size:  # a sum that passed 2^64
                raise invalid(f"{failed}: unable to process address spaceCannot allocate memory")
            self._name = name
            self._memory: mmap.mmap | None = mmap.mmap(file, byte_size, offset=offset)
        finally:
            os.close(file)

    def read(self, position: int, byte_size: int) -> bytes:
        return self._checked(position, byte_size)[position : position + byte_size]

    def write(self, position: int, data: bytes) -> None:
        self._checked(position, len(data))[position : position + len(data)] = data

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _checked(self, position: int, byte_size: int) -> mmap.mmap:
        memory = self._memory
        if memory is None:
            die(f"A request touches the region '{self._name}', which is unmapped.")
        if position + byte_size > len(memory):
            die(f"A request touches bytes past the end of the region '{self._name}'.")
        return memory


@dataclass(frozen=True, slots=True)
class Window:
    """Bytes of a mapping that a request refers to: a source or a target."""

    mapping: Mapping
    position: int
    byte_size: int

    @property
    def on_device(self) -> bool:
        return self.mapping.on_device

    def read(self) -> bytes:
        return self.mapping.read(self.position, self.byte_size)

    def write(self, data: bytes) -> None:
        self.mapping.write(self.position, data)


def open_object(key: str) -> int:
    """Open a shared memory object as shm_open does, and return its descriptor.

    Raises:
        Refusal: It cannot be opened.
    """
    name = key.lstrip("/")
    try:
        if not name or "/" in name or "\0" in name or len(os.fsencode(name)) > _LONGEST_NAME:
            raise OSError
        return os.open(f"{_DIRECTORY}/{name}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        raise internal(f"Unable to open shared memory region: '{key}'") from None


def count_open() -> int:
    """Return how many shared memory objects this process has mapped, by what the kernel says."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        return sum(_DIRECTORY in line for line in maps)


def die(why: str) -> NoReturn:
    """End this process as a server ends here: by SIGSEGV."""
    sys.stderr.write(f"{why} A server of this version crashes here, so this one does.\n")
    sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)
    os._exit(1)  # not reached
