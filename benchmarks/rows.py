"""Who is measured against whom, and what is to come out.

Each contender runs in a process of its own, so that none has the threads, the memory or the
garbage of another. Run as a program, this module is such a process.
"""

from __future__ import annotations

import json
import sys

from . import blocking, layers, limits, ours, peers, pytriton_client, shm_client, wrk
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
_COPIES_IN_PLACE = "two copies, no call, into what is there"
_WRK = "wrk (C), HTTP request made before, no copies"
_SHM_CLIENT = "triton-shm-client 0.1.0 (synchronous)"
_INFER = "triton_zerocopy infer"
_INFER_HTTP = "triton_zerocopy infer, http"
_INFER_UNIX = "triton_zerocopy infer, http+unix"
_INFER_OUT = "triton_zerocopy infer out=, http"
_LEASE = "triton_zerocopy lease, 32 MB"
_LEASE_HTTP = "triton_zerocopy lease, http"

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


_ALONE = (
    Goal(_INFER_HTTP, _WRK, 1.45, on_uvloop=1.35),
    Goal(_BY_HAND, _INFER_HTTP, 3.0, is_at_least=True, on_uvloop=3.5),
)
_MANY = (
    Goal(_WRK, _INFER_HTTP, 0.75, is_at_least=True),
    Goal(_INFER_HTTP, _BY_HAND, 0.3, is_cpu=True),
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
            Contender(
                _INFER_UNIX, ours.unix_infer, SMALL, is_http=True, is_unix=True, needs=_NO_HTTP
            ),
            Contender(_BARE, peers.bare, SMALL),
            Contender(_WRK, wrk.post, SMALL, is_http=True, needs=_NO_WRK),
        ),
        (
            Goal(_INFER, _BY_HAND, 0.98 if callers == 1 else 1.0),
            *(_ALONE if callers == 1 else _MANY),
        ),
        callers=callers,
        reference=_INFER,
    )


def _against_shm_client(label: str, workload: Workload, what: str, faster: float) -> Row:
    return Row(
        f"shm-client-{label}",
        f"{what}, 1 caller, the server copies once",
        MEMCPY,
        (
            Contender(_SHM_CLIENT, shm_client.infer_shm, workload, needs=_NO_SHM_CLIENT),
            Contender(_INFER, ours.infer, workload),
            Contender(_INFER_HTTP, ours.http_infer, workload, is_http=True, needs=_NO_HTTP),
        ),
        (
            Goal(_SHM_CLIENT, _INFER, 1.0, is_at_least=True),
            Goal(_SHM_CLIENT, _INFER_HTTP, faster, is_at_least=True),
        ),
        reference=_INFER,
    )


def _with_out(label: str, workload: Workload, what: str) -> Row:
    def http(name: str, opener: Opener) -> Contender:
        return Contender(name, opener, workload, is_http=True, needs=_NO_HTTP)

    return Row(
        f"out-{label}",
        f"{what} into arrays that are there, 1 caller, the server copies nothing",
        NULL,
        (
            http(_INFER_OUT, ours.http_infer_out),
            http(_INFER_HTTP, ours.http_infer),
            http(_LEASE_HTTP, ours.http_lease),
            Contender(_COPIES_IN_PLACE, limits.copies_in_place, workload),
            Contender(_COPIES, limits.copies, workload),
        ),
        (Goal(_COPIES_IN_PLACE, _INFER_OUT, 0.8, is_at_least=True, beyond=_LEASE_HTTP),),
        reference=_INFER_OUT,
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
    _with_out("4.8mb", IMAGE, "4.8 MB in and out,"),
    _with_out("32mb", LARGE, "32 MB in and out,"),
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
    Row(
        "layers",
        "64 B in and out over HTTP, 1 caller: what each layer adds",
        NULL,
        tuple(
            Contender(name, opener, SMALL, is_http=True, needs=_NO_HTTP)
            for name, opener in (
                ("a blocking socket, the same bytes", layers.blocking),
                ("+ the event loop, with a bare protocol", layers.event_loop),
                ("+ the library's transport, without a future", layers.transport),
                ("+ its slots", layers.engine),
                ("+ two copies, checks, a result", layers.copies),
                (_INFER_HTTP, ours.http_infer),
            )
        ),
        (),
        reference=_INFER_HTTP,
    ),
    _against_shm_client("large", SHM_LARGE, "batch of 2 x 3x1080x1920 (50 MB)", 1.2),
    _against_shm_client("normal", SHM_NORMAL, "batch of 8 x 3x224x224 (4.8 MB)", 1.2),
    _against_shm_client("multi-io", SHM_MULTI, "two of 8 x 3x224x224 in, two out (9.6 MB)", 1.2),
    _against_shm_client("identity", SHM_IDENTITY, "batch of 8 x 16 (512 B)", 3.0),
)


def measure_row(row: Row, rounds: int, conditions: Conditions) -> list[Samples]:
    """Measure a row: its contenders take turns, each in a new process."""
    samples = [Samples(contender.name) for contender in row.present]
    processes: list[Apart] = []
    try:
        for sample in samples:
            arguments = [row.name, sample.name, conditions.http_url, conditions.unix_url]
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


async def _serve(
    url: str, row_name: str, contender_name: str, http_url: str, unix_url: str
) -> None:
    row = next(row for row in ROWS if row.name == row_name)
    contender = next(each for each in row.present if each.name == contender_name)
    over_http = unix_url if contender.is_unix else http_url
    await serve_turns(over_http if contender.is_http else url, row, contender)


if __name__ == "__main__":
    in_process(_serve)
