"""Who is measured against whom, and what is to come out.

Each contender runs in a process of its own, so that none has the threads, the memory or the
garbage of another. Run as a program, this module is such a process.
"""

from __future__ import annotations

import json
import sys

from . import blocking, limits, ours, peers, pytriton_client, shm_client, wrk
from .backends import MEMCPY, NULL
from .callers import Opener
from .measuring import READY, Contender, Goal, Row, Samples, serve_turns
from .processes import Apart, Conditions, in_process
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
_HTTP_BY_HAND = "tritonclient.http.aio + shm by hand"
_BARE = "grpc.aio stub, message made before, no copies"
_COPIES = "two copies, no call"
_WRK = "wrk (C), HTTP request made before, no copies"
_SHM_CLIENT = "triton-shm-client 0.1.0 (synchronous)"
_INFER = "triton_zerocopy infer"
_INFER_HTTP = "triton_zerocopy infer, http"
_LEASE = "triton_zerocopy lease, 32 MB"

_NO_HTTP = "" if ours.speaks_http() else "a version of triton_zerocopy with http:// urls"
_NO_WRK = "" if wrk.is_here() else "wrk (apt-get install wrk)"
_NO_PYTRITON = "" if pytriton_client.is_here() else "pip install nvidia-pytriton"
_NO_SHM_CLIENT = "" if shm_client.is_here() else "pip install triton-shm-client==0.1.0"


def _everybody(workload: Workload) -> tuple[Contender, ...]:
    """All who can do the same work: ours last, after the peers."""

    def http(name: str, opener: Opener, needs: str = "") -> Contender:
        return Contender(name, opener, workload, is_http=True, needs=needs)

    return (
        Contender(_INLINE, peers.inline, workload),
        Contender("tritonclient.grpc, inline", blocking.grpc_inline, workload),
        http("tritonclient.http.aio, inline", peers.http_inline),
        http("tritonclient.http, inline", blocking.http_inline),
        Contender(
            "pytriton AsyncioModelClient, grpc",
            pytriton_client.infer,
            workload,
            needs=_NO_PYTRITON,
        ),
        Contender(_BY_HAND, peers.by_hand, workload),
        Contender("tritonclient.grpc + shm by hand", blocking.grpc_by_hand, workload),
        http(_HTTP_BY_HAND, peers.http_by_hand),
        http("tritonclient.http + shm by hand", blocking.http_by_hand),
        Contender(_INFER, ours.infer, workload),
        http(_INFER_HTTP, ours.http_infer, _NO_HTTP),
    )


def _small(callers: int) -> Row:
    suffix = "" if callers == 1 else f"-{callers}"
    who = "1 caller" if callers == 1 else f"{callers} callers, {callers} slots"
    return Row(
        f"small{suffix}",
        f"64 B in and out, {who}, the server copies nothing",
        NULL,
        (
            *_everybody(SMALL),
            Contender(_BARE, peers.bare, SMALL),
            Contender(_WRK, wrk.post, SMALL, is_http=True, needs=_NO_WRK),
        ),
        (
            Goal(_INFER, _BY_HAND, 1.05),
            Goal(_INFER_HTTP, _WRK, 1.5),
        ),
        callers=callers,
        reference=_INFER,
    )


def _against_shm_client(label: str, workload: Workload, what: str) -> Row:
    return Row(
        f"shm-client-{label}",
        f"{what}, 1 caller, the server copies once",
        MEMCPY,
        (
            Contender(_SHM_CLIENT, shm_client.infer_shm, workload, needs=_NO_SHM_CLIENT),
            Contender(_INFER, ours.infer, workload),
        ),
        (Goal(_INFER, _SHM_CLIENT, 1.0),),
        reference=_INFER,
    )


ROWS = (
    Row(
        "infer",
        "4.8 MB in and out, 1 caller, the server copies nothing",
        NULL,
        (*_everybody(IMAGE), Contender(_COPIES, limits.copies, IMAGE)),
        (
            Goal(_INLINE, _INFER, 7.0, is_at_least=True),
            Goal(_INFER, _BY_HAND, 1.05),
        ),
        reference=_INFER,
    ),
    Row(
        "lease",
        "large tensors, 1 caller, the server copies nothing",
        NULL,
        (
            Contender(f"{_INLINE}, 32 MB", peers.inline, LARGE),
            Contender(f"{_BY_HAND}, 32 MB", peers.by_hand, LARGE),
            Contender(f"{_INFER}, 32 MB", ours.infer, LARGE),
            Contender("triton_zerocopy lease, 64 B", ours.lease, SMALL),
            Contender(_LEASE, ours.lease, LARGE),
            Contender("triton_zerocopy lease, 256 MB", ours.lease, HUGE),
            Contender(f"{_LEASE}, http", ours.http_lease, LARGE, is_http=True, needs=_NO_HTTP),
            Contender(f"{_COPIES}, 32 MB", limits.copies, LARGE),
        ),
        (
            Goal(f"{_INLINE}, 32 MB", _LEASE, 200.0, is_at_least=True),
            Goal("triton_zerocopy lease, 256 MB", "triton_zerocopy lease, 64 B", 1.3),
        ),
        reference=_LEASE,
    ),
    _small(1),
    _small(32),
    _against_shm_client("large", SHM_LARGE, "batch of 2 x 3x1080x1920 (50 MB)"),
    _against_shm_client("normal", SHM_NORMAL, "batch of 8 x 3x224x224 (4.8 MB)"),
    _against_shm_client("multi-io", SHM_MULTI, "two of 8 x 3x224x224 in, two out (9.6 MB)"),
    _against_shm_client("identity", SHM_IDENTITY, "batch of 8 x 16 (512 B)"),
)


def measure_row(row: Row, rounds: int, conditions: Conditions) -> list[Samples]:
    """Measure a row: its contenders take turns, each in a new process."""
    samples = [Samples(contender.name) for contender in row.present]
    processes: list[Apart] = []
    try:
        for sample in samples:
            arguments = [row.name, sample.name, conditions.http_url]
            processes.append(Apart(f"{__package__}.rows", arguments, conditions))
        for process in processes:
            if process.read() != READY:
                sys.exit(f"{row.name}: a contender said something else than that it is ready")
        for _ in range(rounds):
            for sample, process in zip(samples, processes, strict=True):
                sample.add(json.loads(process.ask()))
    finally:
        for process in processes:
            process.end()
    return samples


async def _serve(url: str, row_name: str, contender_name: str, http_url: str) -> None:
    row = next(row for row in ROWS if row.name == row_name)
    contender = next(each for each in row.present if each.name == contender_name)
    await serve_turns(http_url if contender.is_http else url, row, contender)


if __name__ == "__main__":
    in_process(_serve)
