"""What is sent: tensors of a shape, and the models that take them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from triton_zerocopy.testing import RawModel

from .backends import MEMCPY, NULL

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

ITEM_BYTES = 4  # all tensors are FP32


@dataclass(frozen=True)
class Workload:
    """Tensors of one kind: ``INPUT<n>`` in, and ``OUTPUT<n>`` of the same shape out.

    Attributes:
        name: short, part of the model's name.
        shape: of each tensor, with the batch dimension if there is one.
        pairs: how many inputs, and outputs.
        is_batched: whether the first dimension is a batch; the model takes no larger one.
    """

    name: str
    shape: tuple[int, ...]
    pairs: int = 1
    is_batched: bool = False

    @property
    def tensor_bytes(self) -> int:
        """Bytes of one tensor."""
        return math.prod(self.shape) * ITEM_BYTES

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape without the batch dimension."""
        return self.shape[1:] if self.is_batched else self.shape

    def model_name(self, backend: str) -> str:
        """Name of the model that runs it on a backend."""
        return f"{backend}_{self.name}"

    def model(self, backend: str) -> RawModel:
        """Return that model."""
        dims = ", ".join(map(str, self.item_shape))
        lines = [
            f'backend: "{backend}"',
            f"max_batch_size: {self.shape[0] if self.is_batched else 0}",
            "instance_group [ { kind: KIND_CPU count: 1 } ]",
        ]
        for index in range(self.pairs):
            for kind in ("input", "output"):
                name = f"{kind.upper()}{index}"
                lines.append(
                    f'{kind} [ {{ name: "{name}" data_type: TYPE_FP32 dims: [ {dims} ] }} ]'
                )
        return RawModel("\n".join(lines))

    def inputs(self, seed: int) -> Tensors:
        """Make inputs of random numbers."""
        random = np.random.default_rng(seed)
        return {
            f"INPUT{index}": random.random(self.shape, dtype=np.float32)
            for index in range(self.pairs)
        }


SMALL = Workload("64b", (16,))
IMAGE = Workload("4800kb", (1_200_000,))
TWELVE = Workload("12mb", (3_000_000,))
LARGE = Workload("32mb", (8_000_000,))
HUGE = Workload("256mb", (64_000_000,))

# The models of triton-shm-client's own benchmark.
SHM_LARGE = Workload("large", (2, 3, 1080, 1920), is_batched=True)
SHM_NORMAL = Workload("normal", (8, 3, 224, 224), is_batched=True)
SHM_MULTI = Workload("multi_io", (8, 3, 224, 224), pairs=2, is_batched=True)
SHM_IDENTITY = Workload("identity", (8, 16), is_batched=True)

ALL = (SMALL, IMAGE, TWELVE, LARGE, HUGE, SHM_LARGE, SHM_NORMAL, SHM_MULTI, SHM_IDENTITY)


def models() -> dict[str, RawModel]:
    """Return all models that the server has to have."""
    return {
        workload.model_name(backend): workload.model(backend)
        for workload in ALL
        for backend in (NULL, MEMCPY)
    }
