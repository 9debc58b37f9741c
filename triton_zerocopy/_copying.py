"""Large copies, cut into pieces that several threads copy at a time.

One thread does not use all that the memory of a machine can move; docs/memory.md has what was
measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Final

import numpy as np

from ._datatypes import Array

PIECE: Final = 4 << 20
"""Bytes from which a piece is worth a thread."""

THREADS: Final = min(4, len(os.sched_getaffinity(0)))
"""How many threads copy. More than four seldom move more."""

Job = Callable[[], object]


def copy(target: Array, source: Array) -> None:
    """Copy what has the same shape and datatype, in any layout and byte order."""
    target[...] = source


def copy_jobs(target: Array, source: Array) -> list[Job]:
    """Return copies that can be made at the same time, and together are the whole one.

    Args:
        target: where to.
        source: of the same shape and datatype, in any layout and byte order.
    """
    count = min(THREADS, target.nbytes // PIECE)
    if count < 2 or target.dtype.hasobject:
        return [partial(copy, target, source)]
    if target.flags.c_contiguous and source.flags.c_contiguous:
        target, source = target.reshape(-1), source.reshape(-1)
    cuts = np.linspace(0, len(target), count + 1).astype(np.intp).tolist()
    return [
        partial(copy, target[start:stop], source[start:stop])
        for start, stop in pairwise(cuts)
        if stop > start
    ]
