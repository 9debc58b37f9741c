"""How many bytes of shared memory a client holds, and how many it may."""

from __future__ import annotations

import threading

from .._errors import CapacityError


class Budget:
    """A limit on shared memory, in bytes, over all regions of one client."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        # A dict, because its item deletion is atomic: a finalizer may run in any thread.
        self._sizes: dict[int, int] = {}
        self._next = 0
        self._lock = threading.Lock()  # for two threads that reserve; never for release

    @property
    def bytes_reserved(self) -> int:
        """Bytes held now, in regions that are still mapped by this process."""
        return sum(self._sizes.copy().values())

    def reserve(self, byte_size: int) -> int:
        """Take ``byte_size`` bytes and return the token that gives them back.

        Raises:
            CapacityError: it would be more than the limit.
        """
        with self._lock:
            return self._reserve(byte_size)

    def _reserve(self, byte_size: int) -> int:
        held = self.bytes_reserved
        if self.limit is not None and held + byte_size > self.limit:
            raise CapacityError(
                f"{byte_size} more bytes of shared memory would exceed max_shm_bytes={self.limit}, "
                f"{held} are held; raise the limit, use fewer slots, or let go of arrays that keep "
                "slots parked",
                needed=byte_size,
            )
        self._next += 1
        self._sizes[self._next] = byte_size
        return self._next

    def release(self, token: int) -> None:
        """Give back what ``reserve`` took. Idempotent, callable from any thread."""
        self._sizes.pop(token, None)
