"""`AdoptedRegion`: memory of another library that a server maps, held while it does.

What can be shared is what cudaMalloc made, as a whole: CUDA exports allocations, not parts of
them. Memory of stream-ordered pools, virtual memory (torch's expandable segments), managed
memory, and allocations so small that CUDA puts several into one block are refused.
"""

from __future__ import annotations

from typing import Any

from .._cuda import cudart
from .._cuda.arrays import DeviceArray
from .._cuda.countdown import Finish
from .._cuda.cudart import AllocationFacts
from .._cuda.device import Device
from .._cuda.foreign import import_view
from .._cuda.memory import GRANULE
from .._cuda.views import DeviceView
from .._errors import CudaError
from .base import RegionHost
from .cuda import CudaRegion

_INSTEAD = "pass the tensor to infer, which copies it on the GPU, or make it in a lease"


class AdoptedRegion(CudaRegion):
    """The allocation that a tensor of another library lies in.

    Attributes:
        offset: where the tensor begins in it, in bytes.
    """

    def __init__(
        self,
        device: Device,
        tensor: Any,
        view: DeviceView,
        facts: AllocationFacts,
        *,
        name: str,
        raw_handle: bytes,
        server_device_id: int,
        host: RegionHost,
        place: str = "",
    ) -> None:
        super().__init__(
            device,
            (tensor, view.keeper),
            facts.base,
            facts.byte_size,
            name=name,
            raw_handle=raw_handle,
            server_device_id=server_device_id,
            host=host,
            place=place,
        )
        self.offset = view.address - facts.base
        self._tensor = tensor
        self._buffer_id = facts.buffer_id
        self._joined: set[int] = set()

    def join_caller(self) -> None:
        """Order what comes next after the work of the calling thread's current stream."""
        if self._keeper is None:
            return
        view = import_view(self._tensor, self._device, "an adopted tensor")
        if isinstance(view, DeviceArray):
            view = view.view()
        self._joined.update(view.after)
        if view.stream:
            self._joined.add(view.stream)

    async def settle(self) -> None:
        # A call that joins meanwhile settles for itself.
        joined, self._joined = self._joined, set()
        streams = joined | self._streams

        def check(finish: Finish) -> None:
            if cudart.buffer_id(self._address) != self._buffer_id:
                raise CudaError(
                    "the memory of an adopted tensor was freed while it was adopted, and is "
                    "another allocation by now; keep it until the adoption is over"
                )
            self._device.streams.when_settled(streams, finish)

        await self._device.begin(check)


def export(view: DeviceView) -> tuple[AllocationFacts, bytes]:
    """Return the allocation that a tensor lies in, and its handle; in the device's thread.

    Raises:
        CudaError: it cannot be shared; the message says why, and what to do instead.
    """
    if cudart.pointer_facts(view.address).is_managed:
        raise CudaError(f"managed memory cannot be shared with another process; {_INSTEAD}")
    facts = cudart.allocation_facts(view.address)
    if facts.is_pooled:
        raise CudaError(
            "memory of a stream-ordered pool (cudaMallocAsync, torch's backend:cudaMallocAsync, "
            f"cupy.cuda.MemoryAsyncPool) cannot be shared with another process; {_INSTEAD}, or "
            "use an allocator that calls cudaMalloc"
        )
    if not facts.is_exportable:
        raise CudaError(
            "this memory has no CUDA IPC handle, as virtual memory has none (torch's "
            f"expandable_segments:True); {_INSTEAD}, or allocate it with cudaMalloc"
        )
    if facts.byte_size < GRANULE:
        raise CudaError(
            f"the tensor lies in an allocation of {facts.byte_size} bytes; CUDA puts ones below "
            f"2 MiB together and would share what else is there; {_INSTEAD}"
        )
    return facts, cudart.ipc_handle(facts.base)
