"""Who is measured against whom, and what is to come out.

Each row runs in a process of its own. Run as a program, this module is such a process.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from . import ours, peers, shm_client
from .backends import MEMCPY, NULL
from .measuring import Contender, Goal, Row, Samples, measure
from .processes import Conditions, measure_apart, report
from .workloads import (
    HUGE,
    IMAGE,
    LARGE,
    SHM_IDENTITY,
    SHM_LARGE,
    SHM_MULTI,
    SHM_NORMAL,
    SMALL,
    Workload,
)

_INLINE = "tritonclient.grpc.aio, inline"
_BY_HAND = "tritonclient.grpc.aio + shm by hand"
_BARE = "grpc.aio stub, message made before, no copies"
_SHM_CLIENT = "triton-shm-client 0.1.0 (synchronous)"
_INFER = "triton_zerocopy infer"


def _small(callers: int) -> Row:
    suffix = "" if callers == 1 else f"-{callers}"
    who = "1 caller" if callers == 1 else f"{callers} callers, {callers} slots"
    return Row(
        f"small{suffix}",
        f"64 B in and out, {who}, the server copies nothing",
        NULL,
        (
            Contender(_INLINE, peers.inline, SMALL),
            Contender(_BY_HAND, peers.by_hand, SMALL),
            Contender(_INFER, ours.infer, SMALL),
            Contender(_BARE, peers.bare, SMALL),
        ),
        (Goal(_INFER, _BY_HAND, 1.05),),
        callers=callers,
    )


def _against_shm_client(label: str, workload: Workload, what: str) -> Row:
    return Row(
        f"shm-client-{label}",
        f"{what}, 1 caller, the server copies once",
        MEMCPY,
        (
            Contender(_SHM_CLIENT, shm_client.infer_shm, workload),
            Contender(_INFER, ours.infer, workload),
        ),
        (Goal(_INFER, _SHM_CLIENT, 1.0),),
    )


ROWS = (
    Row(
        "infer",
        "4.8 MB in and out, 1 caller, the server copies nothing",
        NULL,
        (
            Contender(_INLINE, peers.inline, IMAGE),
            Contender(_BY_HAND, peers.by_hand, IMAGE),
            Contender(_INFER, ours.infer, IMAGE),
        ),
        (
            Goal(_INLINE, _INFER, 7.0, is_at_least=True),
            Goal(_INFER, _BY_HAND, 1.05),
        ),
    ),
    Row(
        "lease",
        "in place, 1 caller, the server copies nothing",
        NULL,
        (
            Contender(f"{_INLINE}, 32 MB", peers.inline, LARGE),
            Contender("triton_zerocopy lease, 64 B", ours.lease, SMALL),
            Contender("triton_zerocopy lease, 32 MB", ours.lease, LARGE),
            Contender("triton_zerocopy lease, 256 MB", ours.lease, HUGE),
        ),
        (
            Goal(f"{_INLINE}, 32 MB", "triton_zerocopy lease, 32 MB", 200.0, is_at_least=True),
            Goal("triton_zerocopy lease, 256 MB", "triton_zerocopy lease, 64 B", 1.3),
        ),
    ),
    _small(1),
    _small(32),
    _against_shm_client("large", SHM_LARGE, "batch of 2 x 3x1080x1920 (50 MB)"),
    _against_shm_client("normal", SHM_NORMAL, "batch of 8 x 3x224x224 (4.8 MB)"),
    _against_shm_client("multi-io", SHM_MULTI, "two of 8 x 3x224x224 in, two out (9.6 MB)"),
    _against_shm_client("identity", SHM_IDENTITY, "batch of 8 x 16 (512 B)"),
)


def measure_row(row: Row, rounds: int, conditions: Conditions) -> list[Samples]:
    """Measure a row in a new process."""
    measured = measure_apart(f"{__package__}.rows", [row.name, str(rounds)], conditions)
    return [Samples(**each) for each in measured]


async def _measure(url: str, name: str, rounds: str) -> list[dict[str, Any]]:
    row = next(row for row in ROWS if row.name == name)
    return [asdict(samples) for samples in await measure(url, row, int(rounds))]


if __name__ == "__main__":
    report(_measure)
