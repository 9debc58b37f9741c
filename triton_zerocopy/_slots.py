"""`Slot`: the memory of one request at a time, and what was prepared for it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ._arrays import Root, place_array, room_array
from ._errors import InputError
from ._layout import InputPlace, Layout, OutputPlace
from ._received import Checked
from ._regions.base import Region
from ._slot_states import PoolItem
from ._transports.base import InferRequest, InputRef, MemoryRef, OutputRef, Transport

_REMEMBERED: Final = 64


@dataclass(slots=True)
class Prepared:
    """A message that can be sent again and again, and the arrays it refers to.

    Attributes:
        message: the transport's prepared message.
        inputs: for each input its array in the slot, flat bytes for BYTES; None if inline.
        outputs: for each output its array in the slot where its shape is known.
        checked: the last reply to it.
    """

    message: object
    inputs: list[Any]
    outputs: list[Any]
    checked: Checked = field(default_factory=Checked)


class Slot(PoolItem):
    """One region, used by one request at a time.

    A slot is free when nobody holds it. Its caller, a call with the server, and a thread
    that copies each hold it; ``holds`` counts them. Arrays of an ended lease park it.
    """

    __slots__ = (
        "__weakref__",
        "_lease_root",
        "_messages",
        "_prepared",
        "_root",
        "holds",
        "is_doubtful",
        "is_settled",
        "lent_streams",
        "region",
        "rest_until",
    )

    def __init__(self) -> None:
        super().__init__()
        self.region: Region | None = None
        self.holds = 0
        self.is_doubtful = False
        """True after a call that ended without proof that the server let go."""
        self.rest_until = 0.0
        """Loop time before which the region may not be unregistered; 0 for any time."""
        self._root: Root | None = None
        self._prepared: dict[Layout, Prepared] = {}
        self._messages: dict[object, object] = {}
        self._lease_root: weakref.ref[Any] | None = None
        self.lent_streams: set[int] = set()
        """Streams that other libraries use arrays of the last lease on, as far as they said."""
        self.is_settled = True
        """False while work may be queued there that nobody has waited for."""

    @property
    def byte_size(self) -> int:
        """Bytes of shared memory in this slot."""
        return 0 if self.region is None else self.region.byte_size

    def attach(self, region: Region | None) -> None:
        """Take another region, or none."""
        self.region = region
        self._root = None if region is None else region.root()
        self._lease_root = None
        self.lent_streams = set()
        self.rest_until = 0.0
        self.forget_prepared()

    def forget_prepared(self) -> None:
        """Drop the prepared messages; the region's name changed."""
        self._prepared.clear()
        self._messages.clear()

    def prepare(self, layout: Layout, names: RequestNames, transport: Transport) -> Prepared:
        """Return the prepared message for a layout, making it at the first time."""
        prepared = self._prepared.get(layout)
        if prepared is None:
            refs = [
                InputRef(place.spec.name, place.spec.datatype, place.shape, self.refer(place))
                for place in layout.inputs
            ]
            prepared = self.make_prepared(layout, names, transport, refs)
            if len(self._prepared) >= _REMEMBERED:
                self._prepared.clear()
            self._prepared[layout] = prepared
        return prepared

    def make_prepared(
        self,
        layout: Layout,
        names: RequestNames,
        transport: Transport,
        inputs: Sequence[InputRef],
    ) -> Prepared:
        """Prepare a message with these inputs."""
        outputs = [OutputRef(place.spec.name, self.refer(place)) for place in layout.outputs]
        return Prepared(
            transport.prepare(InferRequest(names.model_name, names.model_version, inputs, outputs)),
            [place_array(self._root, place) for place in layout.inputs],
            [place_array(self._root, place) for place in layout.outputs],
        )

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
        self._lease_root = weakref.ref(root)
        return root

    def when_arrays_die(self, died: Callable[[], object]) -> bool:
        """Arrange for ``died`` if arrays of the last lease are alive; tell whether they are.

        ``died`` is called in whatever thread drops the last of them.
        """
        root = None if self._lease_root is None else self._lease_root()
        if root is None:
            return False
        weakref.finalize(root, died).atexit = False
        return True


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


@dataclass(frozen=True, slots=True)
class RequestNames:
    """Which model a message is for."""

    model_name: str
    model_version: str
