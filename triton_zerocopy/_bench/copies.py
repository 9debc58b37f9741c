"""Which tensor bytes the library itself copies for a call: what docs/memory.md says, in numbers.

What gRPC or HTTP, the kernel and the server copy besides is not the library's, and not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .._datatypes import BYTES
from .._specs import TensorSpec
from .plan import Cell
from .workload import byte_size

_AT_ONCE: Final = 64 * 1024
"""Host arrays up to this size reach a GPU in one copy, larger ones through pinned memory."""

_NOWHERE: Final = "not copied: it is written and read where the server does"
_TOLD: Final = {
    ("wire", "infer"): (
        "in once, into the message; out once, out of the answer. The messages also pass gRPC "
        "or HTTP, the socket and the server's buffers, which copy them again"
    ),
    ("system", "infer"): (
        "in once, into the shared region; out once, out of it into an array of the caller's"
    ),
    ("cuda", "infer"): (
        "in to the GPU's shared memory (arrays of more than 64 KiB first to pinned memory: "
        "twice); out once, on the GPU"
    ),
    ("system", "lease"): f"{_NOWHERE}. Filling the inputs is the caller's work, and not timed",
    ("cuda", "lease"): f"{_NOWHERE}, on the GPU. Filling the inputs is not timed",
}


@dataclass(frozen=True, slots=True)
class Copied:
    """Bytes that the library copies for one call."""

    input_bytes: int
    output_bytes: int


def copied(
    cell: Cell,
    specs: Mapping[str, TensorSpec],
    inputs: Mapping[str, object],
    outputs: Mapping[str, object],
) -> Copied:
    """Count what one call copies.

    Args:
        cell: where tensors are, and how they get there.
        specs: the model's inputs and outputs.
        inputs: values of a call.
        outputs: what it gave.
    """
    is_lease, is_cuda = cell.way == "lease", cell.memory.startswith("cuda")

    def times(name: str, value: object, *, is_input: bool) -> int:
        if specs[name].datatype == BYTES:
            return 1  # into or out of the message or the region, whatever the way
        if is_lease:
            return 0
        return 2 if is_cuda and is_input and byte_size(value) > _AT_ONCE else 1

    return Copied(
        sum(byte_size(value) * times(name, value, is_input=True) for name, value in inputs.items()),
        sum(
            byte_size(value) * times(name, value, is_input=False) for name, value in outputs.items()
        ),
    )


def told(memory: str, way: str) -> str:
    """Say in words what is copied where."""
    return _TOLD[memory.partition(":")[0], way]
