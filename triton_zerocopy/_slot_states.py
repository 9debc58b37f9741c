"""Where a slot is in its life, and how many are where."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class SlotState(enum.Enum):
    """Where an item is in its life."""

    FREE = "free"
    LEASED = "leased"
    IN_FLIGHT = "in flight"
    PARKED = "parked"
    QUARANTINED = "quarantined"
    RETIRED = "retired"


class PoolItem:
    """Base of what a pool hands out; the state is the pool's to change."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = SlotState.FREE


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A picture of a pool.

    Attributes:
        capacity: how many slots may be in use at a time at the most.
        available: how many more could be taken now.
        in_use: slots that are leased or in flight.
        in_flight: slots among them whose call is with the server.
        parked: slots kept for arrays that outlived their lease.
        quarantined: slots whose call ended without proof that the server let go.
        retired: slots given up since the pool was made.
        waiting: callers that wait for a slot.
    """

    capacity: int
    available: int
    in_use: int
    in_flight: int
    parked: int
    quarantined: int
    retired: int
    waiting: int
