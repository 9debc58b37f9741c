"""`Slot`: the memory of one request at a time, and what was prepared for it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from ._arrays import Root, place_array, room_array
from ._errors import InputError
from ._layout import InputPlace, Layout, OutputPlace
from ._regions.base import Region
from ._requests import Request
from ._slot_states import PoolItem
from ._transports.base import InferReply, MemoryRef
from ._waiter import Waiter

_REMEMBERED: Final = 64


class Slot(PoolItem):
    """One region, used by one request at a time.

    A slot is free when nobody holds it. Its caller, a call with the server, and a thread
    that copies each hold it; ``holds`` counts them. Arrays of an ended lease park it.
    """

    __slots__ = (
        "__weakref__",
        "_messages",
        "_root",
        "answered",
        "byte_size",
        "holds",
        "is_doubtful",
        "is_settled",
        "lease_root",
        "lent_streams",
        "placed",
        "region",
        "requests",
        "rest_until",
        "waiter",
    )

    def __init__(self) -> None:
        super().__init__()
        self.region: Region | None = None
        self.byte_size = 0
        """Bytes of shared memory in this slot."""
        self.holds = 0
        self.is_doubtful = False
        """True after a call that ended without proof that the server let go."""
        self.rest_until = 0.0
        """Loop time before which the region may not be unregistered; 0 for any time."""
        self._root: Root | None = None
        self.requests: dict[Layout, Request] = {}
        """Those that were made for a layout in this region."""
        self._messages: dict[object, object] = {}
        self.lease_root: weakref.ref[Any] | None = None
        """What arrays of the last lease are views of; None once nothing of it is left."""
        self.lent_streams: set[int] = set()
        """Streams that other libraries use arrays of the last lease on, as far as they said."""
        self.is_settled = True
        """False while work may be queued there that nobody has waited for."""
        self.answered: Callable[[InferReply | None, BaseException | None], None] = _unasked
        """What is to be called when the server has answered."""
        self.waiter: Waiter[InferReply] | None = None
        """What the caller of the call under way waits for."""
        self.placed: Sequence[Region] = ()
        """Regions of the caller's that the call under way refers to."""

    def attach(self, region: Region | None) -> None:
        """Take another region, or none."""
        self.region = region
        self.byte_size = 0 if region is None else region.byte_size
        self._root = None if region is None else region.root()
        self.forget_lease()
        self.rest_until = 0.0
        self.forget_prepared()

    def forget_prepared(self) -> None:
        """Drop the prepared messages; the region's name changed."""
        self.requests.clear()
        self._messages.clear()

    def keep(self, layout: Layout, request: Request) -> None:
        """Keep the request of a layout for its next call."""
        if len(self.requests) >= _REMEMBERED:
            self.requests.clear()
        self.requests[layout] = request

    def remember(self, key: object, make: Callable[[], object]) -> object:
        """Return the message prepared for ``key``, making it at the first time."""
        message = self._messages.get(key)
        if message is None:
            if len(self._messages) >= _REMEMBERED:
                self._messages.clear()
            message = self._messages[key] = make()
        return message

    def refer(self, place: InputPlace | OutputPlace) -> MemoryRef | None:
        """Return how a message names this place; None for inline."""
        if place.offset is None or self.region is None:
            return None
        return MemoryRef(self.region.name, place.offset, place.byte_size)

    def array(self, place: InputPlace | OutputPlace) -> Any:
        """Return the array of a place: flat bytes for BYTES; None if inline or of unknown shape."""
        return place_array(self._root, place)

    def room(self, place: OutputPlace) -> Any:
        """Return the flat bytes of an output's room."""
        return room_array(self._root, place)

    # Leases

    def lend_root(self) -> Root:
        """Return what all arrays of one lease are views of."""
        assert self.region is not None
        if self.region.is_device_accessible:
            self.lent_streams = set()
            self.is_settled = False
        root = self.region.root(self.lent_streams)
        self.lease_root = weakref.ref(root)
        return root

    def forget_lease(self) -> None:
        """Nothing of the last lease is left."""
        self.lease_root = None
        if self.lent_streams:
            self.lent_streams = set()

    def when_arrays_die(self, died: Callable[[], object]) -> bool:
        """Arrange for ``died`` if arrays of the last lease are alive; tell whether they are.

        ``died`` is called in whatever thread drops the last of them.
        """
        root = None if self.lease_root is None else self.lease_root()
        if root is None:
            return False
        weakref.finalize(root, died).atexit = False
        return True


def _unasked(reply: InferReply | None, error: BaseException | None) -> None:  # noqa: ARG001
    raise AssertionError("a slot that no engine made was answered")


class SlotRange(NamedTuple):
    """How many slots there are: kept when nobody uses them, and at the most."""

    fewest: int
    most: int

    @staticmethod
    def parse(slots: Any) -> SlotRange:
        """Return what ``slots=`` says, a number or a pair. Raises InputError."""
        pair: Any = slots if isinstance(slots, tuple) else (slots, slots)
        is_pair = len(pair) == 2 and all(type(each) is int for each in pair)
        if not is_pair or not 1 <= pair[0] <= pair[1]:
            raise InputError(
                f"slots is a number from 1 on, or the fewest and the most as a pair, got {slots!r}"
            )
        return SlotRange(*pair)
