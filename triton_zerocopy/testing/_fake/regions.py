"""What clients registered, and which requests use it (server, src/shared_memory_manager.cc)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .cuda import CudaRuntime
from .mappings import Mapping, SystemMapping, Window, open_object
from .refusals import Refusal, internal, invalid
from .versions import Release

Kind = Literal["system", "cuda"]

_SIZE_MAX = 2**64  # sizes are unsigned in the server, so that negative ones become large
_RESERVED = "triton_python_backend_shm_region_"
DISABLED = (
    "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
)


@dataclass(eq=False)
class Region:
    """A registered region.

    Attributes:
        references: How many tensors of requests refer to it.
        is_awaiting: Whether an unregister waits for them.
    """

    name: str
    kind: Kind
    mapping: Mapping
    byte_size: int
    key: str = ""
    offset: int = 0
    device_id: int = 0
    references: int = 0
    is_awaiting: bool = False


class RegionTable:
    """The regions of both kinds, in one name space."""

    def __init__(self, release: Release, cuda: CudaRuntime, *, is_allowed: bool) -> None:
        """Start without regions.

        Args:
            release: How this server behaves.
            cuda: What opens CUDA memory.
            is_allowed: Whether clients may register and unregister.
        """
        self._release = release
        self._cuda = cuda
        self._regions: dict[str, Region] = {}
        self.is_allowed = is_allowed
        self.to_lose = 0
        """How many of the next unregisters that would be deferred get lost instead."""

    def register_system(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Map a shared memory object.

        Raises:
            Refusal: It cannot be registered.
        """
        self.check_allowed()
        self._check_key(name, key)
        self._check_name(name)
        if not self._release.keys_may_repeat and any(
            region.key == key for region in self._regions.values() if region.kind == "system"
        ):
            # The server takes the number of a descriptor that it has closed. Should another file
            # have that number by now, it maps this file; that is not played.
            raise internal(f"Invalid shared memory region: '{key}'")
        offset, byte_size = offset % _SIZE_MAX, byte_size % _SIZE_MAX
        mapping = SystemMapping(name, open_object(key), offset, byte_size)
        self._regions[name] = Region(name, "system", mapping, byte_size, key=key, offset=offset)

    def register_cuda(self, name: str, handle: bytes, device_id: int, byte_size: int) -> None:
        """Map CUDA memory.

        Raises:
            Refusal: It cannot be registered.
        """
        self.check_allowed()
        self._check_name(name)
        mapping = self._cuda.open(handle, device_id)
        self._regions[name] = Region(name, "cuda", mapping, byte_size, device_id=device_id)

    def unregister(self, name: str, kind: Kind) -> None:
        """Forget a region, or all of a kind if the name is empty. An unknown one is no error.

        Raises:
            Refusal: A request uses it, and this release refuses that.
        """
        self.check_allowed()
        if name:
            self._unregister(name, kind)
            return
        failed: list[str] = []
        for region in self.of_kind(kind):
            try:
                self._unregister(region.name, kind)
            except Refusal:
                failed.append(f"{region.name} ,")
        if failed:
            raise internal(
                f"Failed to unregister the following {kind} shared memory regions:"
                f" {''.join(failed)}"
            )

    def status(self, name: str, kind: Kind) -> list[Region]:
        """Return a region, or all of a kind if the name is empty.

        Raises:
            Refusal: There is none of that name.
        """
        if not name:
            return self.of_kind(kind)
        region = self._regions.get(name)
        if region is None:
            raise Refusal("NOT_FOUND", f"Unable to find {kind} shared memory region: '{name}'")
        if region.kind != kind:
            words = {"system": "system shared memory", "cuda": "CUDA shared memory"}
            raise Refusal(
                "NOT_FOUND",
                f"The region named '{name}' is registered as {words[region.kind]}, not"
                f" {words[kind]}",
            )
        return [region]

    def of_kind(self, kind: Kind) -> list[Region]:
        """Return the regions of a kind, by name."""
        found = (region for region in self._regions.values() if region.kind == kind)
        return sorted(found, key=lambda region: region.name)

    def references(self) -> References:
        """Return what one request will refer to; nothing yet."""
        return References(self)

    def window(self, name: str, offset: int, byte_size: int) -> tuple[Region, Window]:
        """Look up the bytes that a tensor refers to.

        Raises:
            Refusal: There is no such region, or not that much of it.
        """
        region = self._regions.get(name)
        if region is None:
            raise Refusal("NOT_FOUND", f"Unable to find shared memory region: '{name}'")
        offset, byte_size = offset % _SIZE_MAX, byte_size % _SIZE_MAX
        right = self._release.offsets_are_right
        # Older servers add the offset of the registration, though the mapping begins there, and
        # reckon with the last byte, which even a region of no bytes has.
        extra = region.offset if region.kind == "system" and not right else 0
        size = region.byte_size if right else extra + max(region.byte_size, 1)
        if offset >= size:
            raise invalid(f"Invalid offset for shared memory region: '{name}'")
        if self._release.checks_overflow and byte_size >= _SIZE_MAX - offset:
            raise invalid(
                f"Integer overflow detected: byte_size ({byte_size}) + offset ({offset}) exceeds"
                f" maximum value ({_SIZE_MAX - 1}) for region '{name}'"
            )
        total = offset + byte_size
        if total > size if right else (total - 1) % _SIZE_MAX > size - 1:
            raise invalid(f"Invalid offset + byte size for shared memory region: '{name}'")
        return region, Window(region.mapping, extra + offset, byte_size)

    def let_go(self, region: Region) -> None:
        """A request refers to a region no more."""
        was_awaiting = region.is_awaiting
        region.references -= 1
        if was_awaiting:
            self._unregister(region.name, region.kind)  # by name, as the server does
        if not region.references and self._regions.get(region.name) is not region:
            region.mapping.close()  # it was forgotten in the meantime

    def forget(self, name: str) -> None:
        """Drop a registration, as if somebody else had unregistered it; empty for all."""
        for region in list(self._regions.values()):
            if name in ("", region.name):
                del self._regions[region.name]
                region.is_awaiting = False
                if not region.references:
                    region.mapping.close()

    def _unregister(self, name: str, kind: Kind) -> None:
        region = self._regions.get(name)
        if region is None or region.kind != kind:
            return
        policy = self._release.unregister
        if region.references and policy == "refused":
            raise internal(
                f"Cannot unregister shared memory region '{name}', it is currently in use."
            )
        if region.references and policy == "deferred":
            if self.to_lose:
                self.to_lose -= 1
            else:
                region.is_awaiting = True
            return
        region.mapping.close()
        del self._regions[name]

    def check_allowed(self) -> None:
        if not self.is_allowed:
            raise Refusal("UNIMPLEMENTED", DISABLED)

    def _check_name(self, name: str) -> None:
        if name in self._regions:
            raise Refusal("ALREADY_EXISTS", f"shared memory region '{name}' already in manager")

    def _check_key(self, name: str, key: str) -> None:
        reserved = self._release.reserved_keys
        if reserved == "always" and not key.strip("/"):
            raise invalid(
                f"cannot register shared memory region '{name}' - invalid shm key '{key}'"
            )
        spelled = key.lstrip("/") if reserved == "always" else key
        if reserved != "no" and spelled.startswith(_RESERVED):
            raise invalid(
                f"cannot register shared memory region '{name}' with key '{key}' as the key"
                f" contains the reserved prefix '{_RESERVED}'"
            )


class References:
    """The regions that one request refers to: one reference for each tensor."""

    def __init__(self, table: RegionTable) -> None:
        self._table = table
        self._regions: list[Region] = []

    def take(self, name: str, offset: int, byte_size: int) -> Window:
        """Refer to bytes of a region.

        Raises:
            Refusal: There are no such bytes.
        """
        region, window = self._table.window(name, offset, byte_size)
        region.references += 1
        self._regions.append(region)
        return window

    def release(self) -> None:
        """Refer to nothing any more."""
        while self._regions:
            self._table.let_go(self._regions.pop())
