"""`Client.adopt`: a tensor of another library as an input or output where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ._cuda.arrays import DeviceArray
from ._cuda.device import Device
from ._cuda.foreign import device_of, import_view, locate
from ._errors import InputError
from ._regions.adopted import AdoptedRegion, export
from ._regions.base import RegionTensor
from ._regions.names import new_name
from ._runtime import Runtime

_WHERE = "Client.adopt"


@dataclass(frozen=True, slots=True)
class AdoptedTensor(RegionTensor):
    """A tensor of another library that the server has mapped, made by `Client.adopt`."""

    async def aclose(self) -> None:
        """Wait for calls that use it, have the server let go of it, then let go of it here.

        Idempotent. Cancellation: the closing goes on by itself.
        """
        await self.region.aclose()


async def find_device(runtime: Runtime, tensor: Any) -> int:
    """Return the ordinal of the GPU that a tensor is on."""
    if hasattr(tensor, "__dlpack_device__"):
        return device_of(tensor)[1]
    # Its address tells; any GPU's thread can ask for that.
    device = await runtime.any_device()
    view = import_view(tensor, device, _WHERE)
    assert not isinstance(view, DeviceArray)
    found = await device.ask(lambda: locate(view))
    assert found.device_id is not None
    return found.device_id


async def adopt_tensor(runtime: Runtime, device: Device, tensor: Any, place: str) -> AdoptedTensor:
    """Make a region of the memory that a tensor lies in; it is not registered yet."""
    view = import_view(tensor, device, _WHERE)
    if isinstance(view, DeviceArray):
        view = view.view()
    if not view.byte_size:
        raise InputError(f"{_WHERE}: a tensor without elements has no memory")
    if not view.is_contiguous:
        raise InputError(f"{_WHERE}: the tensor's elements do not lie one after another")
    owner = await runtime.regions.ownership.get()
    facts, raw_handle = await device.ask(lambda: export(view))
    region = AdoptedRegion(
        device,
        tensor,
        view,
        facts,
        name=new_name(owner.id),
        raw_handle=raw_handle,
        server_device_id=runtime.settings.server_device_id(device.id, device.facts.uuid),
        host=runtime.regions,
        place=place,
    )
    return AdoptedTensor(region, view.shape, view.datatype, region.offset, view.byte_size)
