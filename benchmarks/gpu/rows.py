"""Who is measured against whom on the GPU, and what is to come out.

Each row runs in a process of its own. Run as a program, this module is such a process.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..backends import NULL
from ..measuring import Contender, Goal, Row, Samples, measure
from ..processes import Conditions, measure_apart, report
from . import ours, peers
from .bandwidth import PlainDownload, PlainUpload, RegionWrite, ToNumpy, copier
from .gpus import Gpu, open_gpu
from .modes import Mode
from .workloads import Workloads, workloads_for

NAMES = ("in-place", "device", "numpy", "upload", "download")
COPIES = ("upload", "download")
"""Those whose result is a speed."""

_INLINE = "tritonclient.grpc.aio, inline, D2H, H2D"
_HELPERS = "tritonclient cuda_shared_memory"
_INFER = "triton_zerocopy infer"
_LEASE = "triton_zerocopy lease"
_ADOPT = "triton_zerocopy adopt"
_WRITE = "triton_zerocopy Region.write"
_NUMPY = "triton_zerocopy DeviceArray.numpy"
_PINNED = "cudaMemcpyAsync, pinned memory"
_PAGEABLE = "cudaMemcpyAsync, pageable memory"


def rows_for(gpu: Gpu, work: Workloads) -> tuple[Row, ...]:
    """Return all rows."""
    return (
        Row(
            "in-place",
            "in the memory of the GPU, 1 caller, the server copies nothing",
            NULL,
            (
                Contender(f"{_LEASE}, 64 B", ours.lease, work.small),
                Contender(f"{_LEASE}, 64 MB", ours.lease, work.large),
                Contender(f"{_LEASE}, 256 MB", ours.lease, work.huge),
                Contender(f"{_ADOPT}, 64 MB", ours.adopted_with(gpu), work.large),
                Contender(f"{_ADOPT}, 256 MB", ours.adopted_with(gpu), work.huge),
            ),
            (
                Goal(f"{_LEASE}, 256 MB", f"{_LEASE}, 64 B", 1.2),
                Goal(f"{_ADOPT}, 256 MB", f"{_ADOPT}, 64 MB", 1.2),
            ),
        ),
        _device_row(gpu, work),
        Row(
            "numpy",
            "64 MB arrays on the host, in and out by way of the GPU, 1 caller, the server copies "
            "nothing",
            NULL,
            (
                Contender(_HELPERS, peers.helpers_numpy, work.large),
                Contender(_INFER, ours.infer_numpy, work.large),
            ),
            (Goal(_HELPERS, _INFER, 2.0, is_at_least=True),),
        ),
        Row(
            "upload",
            "256 MB from the host to the GPU, no call",
            NULL,
            (
                Contender(_PINNED, copier(PlainUpload, gpu, is_pinned=True), work.huge),
                Contender(_PAGEABLE, copier(PlainUpload, gpu), work.huge),
                Contender(_WRITE, copier(RegionWrite, gpu), work.huge),
            ),
            (Goal(_PINNED, _WRITE, 0.8, is_at_least=True),),
        ),
        Row(
            "download",
            "256 MB from the GPU to the host, no call",
            NULL,
            (
                Contender(_PINNED, copier(PlainDownload, gpu, is_pinned=True), work.huge),
                Contender(_PAGEABLE, copier(PlainDownload, gpu), work.huge),
                Contender(_NUMPY, copier(ToNumpy, gpu), work.huge),
            ),
            (Goal(_PINNED, _NUMPY, 0.8, is_at_least=True),),
        ),
    )


def _device_row(gpu: Gpu, work: Workloads) -> Row:
    contenders = [
        Contender(_INLINE, peers.inline_with(gpu), work.large),
        Contender(_INFER, ours.infer_with(gpu), work.large),
    ]
    goals = [Goal(_INLINE, _INFER, 20.0, is_at_least=True)]
    if gpu.has_dlpack:
        contenders.insert(1, Contender(_HELPERS, peers.helpers_with(gpu), work.large))
        goals.append(Goal(_HELPERS, _INFER, 2.0, is_at_least=True))
    return Row(
        "device",
        "64 MB tensors on the GPU, in and out, 1 caller, the server copies nothing",
        NULL,
        contenders,
        goals,
    )


def measure_row(row: Row, rounds: int, mode: Mode, conditions: Conditions) -> list[Samples]:
    """Measure a row in a new process."""
    arguments = [row.name, str(rounds), str(mode)]
    measured = measure_apart(f"{__package__}.rows", arguments, conditions)
    return [Samples(**each) for each in measured]


async def _measure(url: str, name: str, rounds: str, mode_text: str) -> list[dict[str, Any]]:
    mode = Mode.parse(mode_text)
    mode.prepare()
    rows = rows_for(open_gpu(mode), workloads_for(mode))
    row = next(row for row in rows if row.name == name)
    return [asdict(samples) for samples in await measure(url, row, int(rounds))]


if __name__ == "__main__":
    report(_measure)
