"""What is sent: FP32 tensors of 64 B, 64 MB and 256 MB."""

from __future__ import annotations

from dataclasses import dataclass

from triton_zerocopy.testing import RawModel

from ..backends import MEMCPY, NULL
from ..workloads import SMALL, Workload
from .modes import Mode


@dataclass(frozen=True)
class Workloads:
    """The tensors of a run."""

    small: Workload
    large: Workload
    huge: Workload

    def models(self) -> dict[str, RawModel]:
        """Return all models that the server has to have."""
        return {
            workload.model_name(backend): workload.model(backend)
            for workload in (self.small, self.large, self.huge)
            for backend in (NULL, MEMCPY)
        }


def workloads_for(mode: Mode) -> Workloads:
    """Return the tensors of a run; tried quickly they are smaller, but more than 2 MiB."""
    if mode.is_quick:
        return Workloads(SMALL, Workload("64mb", (600_000,)), Workload("256mb", (1_200_000,)))
    return Workloads(SMALL, Workload("64mb", (16_000_000,)), Workload("256mb", (64_000_000,)))
