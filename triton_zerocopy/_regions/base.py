"""`Region`: one stretch of shared memory that a server knows by name.

What holds after each end of a call that uses the region:

=====================================  ==========================================
the call                               the region
=====================================  ==========================================
was answered                           is as before; the server let go of it
ended ambiguously (connection lost)    is busy: ``write`` and ``infer`` raise
                                       RegionBusy until ``quiesce()`` has proved
                                       that the server let go
is still running at ``aclose()``       ``aclose()`` waits for it
=====================================  ==========================================

Views hold an export of the mapping: it is never unmapped under a living array.
"""

from __future__ import annotations

import asyncio
import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy.typing as npt

from .._datatypes import (
    BYTES,
    Array,
    Shape,
    byte_size_of,
    dtype_of,
)
from .._errors import InputError, RegionBusy, RegionClosed


class RegionState(enum.Enum):
    """Life of a region; it never goes back."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class RegionHost(Protocol):
    """What a region needs from the client that made it."""

    def check_usable(self) -> None: ...
    async def run_copy(self, copy: Callable[[], Any], byte_size: int) -> Any: ...
    async def make_known(self, region: Region) -> None: ...
    async def forget(self, region: Region) -> None: ...
    async def dispose(self, region: Region) -> None: ...


@dataclass(frozen=True, slots=True)
class RegionTensor:
    """A tensor at a place in a region, made by `Region.tensor`."""

    region: Region
    shape: Shape
    datatype: str
    offset: int
    byte_size: int


class Region(ABC):
    """Shared memory known to one server, made by `Client.region`.

    Attributes:
        name: the region's name at the server; it is never used twice.
        byte_size: bytes in it.
        memory: the kind, ``"system"`` or ``"cuda:N"``.
        device_id: ordinal of the GPU, None for host memory.
        is_host_accessible: True if the CPU can read and write this memory.
        is_device_accessible: True if a GPU can read and write this memory.
    """

    memory: str
    device_id: int | None = None
    is_host_accessible: bool
    is_device_accessible: bool

    def __init__(self, name: str, byte_size: int, host: RegionHost | None) -> None:
        self.name = name
        self.byte_size = byte_size
        self._host = host
        self._state = RegionState.OPEN
        self._calls = 0
        self._is_ambiguous = False
        # Held while it is registered anew: several calls may find at once that it is lost.
        self.renewing = asyncio.Lock()
        self._idle: asyncio.Future[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._closed_hook: Callable[[Region], object] = lambda _: None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.byte_size} bytes {self._state.value}>"

    @abstractmethod
    def root(self, streams: set[int] | None = None) -> Any:
        """Return what views of the region are made of; it keeps the memory.

        ``streams`` notes where views of device memory are used, by default for the region.
        """

    @abstractmethod
    def free(self) -> None:
        """Give the memory back. Blocking, idempotent; living arrays keep their bytes.

        Only after the server has let go of it.
        """

    def give_up(self) -> None:
        """Give the memory back as far as that is safe while the server may have it mapped."""
        self.free()

    async def freed(self) -> None:  # noqa: B027 # host memory is free at once
        """Wait until ``free`` has taken effect, so that the memory can be had again."""

    async def settle(self) -> None:  # noqa: B027 # host memory is not used by any queue
        """Wait for what other libraries queued on this memory, before a call uses it."""

    def join_caller(self) -> None:  # noqa: B027 # as above
        """The calling thread is about to use it in a call: order that after its own work."""

    # Views and places

    @abstractmethod
    def array(self, shape: Sequence[int], dtype: npt.DTypeLike, *, offset: int = 0) -> Any:
        """Return an array over this memory, without a copy.

        It is a numpy array, or a `DeviceArray` over memory of a GPU.

        Args:
            shape: the array's shape.
            dtype: a numpy dtype of fixed item size.
            offset: where it begins, in bytes from the region's start.

        Raises:
            InputError: it does not lie inside the region.
            RegionClosed: the region was closed.
        """

    def tensor(
        self,
        shape: Sequence[int],
        datatype: str,
        *,
        offset: int = 0,
        byte_size: int | None = None,
    ) -> RegionTensor:
        """Name a place in this memory as an input or output of an infer call.

        Args:
            shape: full shape, batch dimension included.
            datatype: Triton's name, for example ``"FP32"``.
            offset: where the tensor begins, in bytes from the region's start.
            byte_size: for BYTES the exact framed bytes of an input or the room for an
                output; other datatypes follow from their shape.

        Raises:
            InputError: unknown datatype, or the tensor is not inside the region.
            RegionClosed: the region was closed.
        """
        self._check_open()
        dtype_of(datatype)
        sizes = check_shape(shape)
        if datatype == BYTES:
            if byte_size is None:
                raise InputError("a BYTES tensor in a region needs its byte_size")
        else:
            expected = byte_size_of(sizes, datatype)
            if byte_size not in (None, expected):
                raise InputError(
                    f"{datatype} of shape {list(sizes)} takes {expected} bytes, not {byte_size}"
                )
            byte_size = expected
        self.check_range(offset, byte_size)
        return RegionTensor(self, sizes, datatype, offset, byte_size)

    @abstractmethod
    async def write(self, value: Any, *, offset: int = 0) -> int:
        """Copy an array or bytes into the region; large copies run off the loop.

        An array of ``bytes`` or ``str`` is framed as a BYTES tensor, in host memory only. A
        region of device memory takes device tensors of any library, too.

        Returns:
            The bytes that were written.

        Raises:
            RegionBusy: a call that used the region ended ambiguously.
            InputError: it does not fit at ``offset``.
            RegionClosed: the region was closed.
            CudaError: the GPU could not copy.

        Cancellation: a copy that has begun goes on to its end in its thread.
        """

    @abstractmethod
    async def read(self, shape: Sequence[int], datatype: str, *, offset: int = 0) -> Array:
        """Copy a tensor out of the region; large copies run off the loop.

        Returns:
            An array of ``shape`` that the caller owns; object array of bytes for BYTES.

        Raises:
            InputError: it is not inside the region.
            InferenceError: BYTES lengths in the memory point outside of it.
            RegionClosed: the region was closed.

        Cancellation: safe; nothing in the region changes.
        """

    # Calls

    def begin_call(self) -> None:
        """Count a call that uses this region. Raises RegionBusy or RegionClosed."""
        self._check_open()
        self._check_quiet()
        self._calls += 1

    def end_call(self, *, is_ambiguous: bool) -> None:
        """The call was answered, or ended without proof that the server let go."""
        self._calls -= 1
        self._is_ambiguous |= is_ambiguous
        if self._calls == 0 and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def quiesce(self) -> None:
        """Wait until no call can touch this memory any more.

        After an ambiguous end the server is asked to let go of the region (unregister,
        until its status says it is gone), and it is registered anew under a new name.

        Cancellation: safe; call it again.
        """
        self._check_open()
        await self._wait_idle()
        if self._is_ambiguous and self._host is not None:
            await self._host.forget(self)
            await self._host.make_known(self)
            self._is_ambiguous = False

    # Closing

    async def aclose(self) -> None:
        """Wait for calls that use the region, unregister it, and free its memory.

        Arrays over it that are still alive keep their bytes. Idempotent.

        Cancellation: the closing goes on by itself.
        """
        if self._closing is None:
            self._state = RegionState.CLOSING
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def abandon(self) -> None:
        """Stop waiting for calls that use the memory; it is to be freed next."""
        self._state = RegionState.CLOSED
        if self._closing is not None:
            self._closing.cancel()

    async def _close(self) -> None:
        await self._wait_idle()
        try:
            if self._host is not None:
                await self._host.dispose(self)
            else:
                self.free()
        finally:
            self._state = RegionState.CLOSED
            self._closed_hook(self)

    def when_closed(self, hook: Callable[[Region], object]) -> None:
        """Have ``hook`` called once the region is closed."""
        self._closed_hook = hook

    async def _wait_idle(self) -> None:
        while self._calls:
            if self._idle is None or self._idle.done():
                self._idle = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)

    # Checks

    def check_range(self, offset: int, byte_size: int) -> None:
        """Raise InputError unless these bytes lie inside the region."""
        if offset < 0 or byte_size < 0 or offset + byte_size > self.byte_size:
            raise InputError(
                f"bytes {offset} to {offset + byte_size} are not inside a region of "
                f"{self.byte_size} bytes"
            )

    def _check_open(self) -> None:
        if self._host is not None:
            self._host.check_usable()
        if self._state is not RegionState.OPEN:
            raise RegionClosed(f"the region is {self._state.value}; make a new one")

    def _check_quiet(self) -> None:
        if self._is_ambiguous:
            raise RegionBusy(
                "a call that used this region ended without an answer, so the server may still "
                "write into it; `await region.quiesce()` first"
            )


def made_at(place: str) -> str:
    """Return what a warning says of where something was made."""
    return f" (made at {place})" if place else ""


def check_shape(shape: Sequence[int]) -> Shape:
    """Return a shape as a tuple, or raise InputError."""
    try:
        sizes = tuple(int(size) for size in shape)
    except (TypeError, ValueError):
        raise InputError(f"a shape is a sequence of integers, got {shape!r}") from None
    if any(size < 0 for size in sizes):
        raise InputError(f"a shape has no negative sizes, got {list(sizes)}")
    return sizes


def begin_calls(regions: Sequence[Region]) -> None:
    """Count a call in each region, or in none of them."""
    for index, region in enumerate(regions):
        try:
            region.begin_call()
        except BaseException:
            for begun in regions[:index]:
                begun.end_call(is_ambiguous=False)
            raise
