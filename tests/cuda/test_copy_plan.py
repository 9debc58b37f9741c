"""A copy of any layout as plain copies, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import triton_zerocopy as tz
from triton_zerocopy._cuda.copy_plan import MOST_PIECES, plan_copy

ITEM = np.dtype(np.uint16)


def run(plan, target, source):
    """Do what CUDA would: copy bytes."""
    for piece in plan:
        for row in range(piece.height):
            to = piece.target + row * piece.target_pitch
            of = piece.source + row * piece.source_pitch
            assert piece.height == 1 or min(piece.target_pitch, piece.source_pitch) >= piece.width
            target[to : to + piece.width] = source[of : of + piece.width]


@st.composite
def layouts(draw):
    """A shape, and strides of a view of it: permuted, stepped, repeated, with odd size-1 ones."""
    sizes = draw(st.lists(st.integers(0, 5), max_size=4))
    order = draw(st.permutations(range(len(sizes))))
    steps = draw(st.lists(st.integers(1, 3), min_size=len(sizes), max_size=len(sizes)))
    strides = [0] * len(sizes)
    end = ITEM.itemsize
    for axis in order:
        strides[axis] = end * steps[axis]
        end = strides[axis] * max(1, sizes[axis])
    for axis, size in enumerate(sizes):
        if size == 1:
            strides[axis] = draw(st.sampled_from([0, 2, 6, 1 << 40]))
        elif draw(st.integers(0, 9)) == 0:
            strides[axis] = 0
    return tuple(sizes), tuple(strides)


def packed(shape):
    return np.empty(shape, ITEM).strides


def reach(shape, strides):
    if 0 in shape:
        return 0
    steps = sum((size - 1) * step for size, step in zip(shape, strides, strict=True) if size > 1)
    return steps + ITEM.itemsize


@given(layouts(), st.booleans())
def test_every_layout_to_a_packed_one(layout, has_pitch):
    shape, strides = layout
    source = np.random.default_rng(1).integers(0, 255, reach(shape, strides), np.uint8)
    target = np.zeros(int(np.prod(shape)) * ITEM.itemsize, np.uint8)
    run(
        plan_copy(shape, ITEM.itemsize, packed(shape), strides, has_pitch=has_pitch), target, source
    )
    real = tuple(0 if size == 1 else step for size, step in zip(shape, strides, strict=True))
    view = np.ndarray(shape, ITEM, source if source.size else np.zeros(2, np.uint8), 0, real)
    assert np.array_equal(target.view(ITEM), view.ravel())


@given(layouts())
def test_a_packed_one_to_every_layout_that_overlaps_nowhere(layout):
    shape, strides = layout
    if any(step == 0 and size > 1 for size, step in zip(shape, strides, strict=True)):
        return
    source = np.random.default_rng(1).integers(0, 255, int(np.prod(shape)) * 2, np.uint8)
    target = np.zeros(reach(shape, strides), np.uint8)
    run(plan_copy(shape, ITEM.itemsize, strides, packed(shape)), target, source)
    real = tuple(0 if size == 1 else step for size, step in zip(shape, strides, strict=True))
    view = np.ndarray(shape, ITEM, target if target.size else np.zeros(2, np.uint8), 0, real)
    assert np.array_equal(source.view(ITEM), view.ravel())


def test_as_few_as_possible():
    def count(shape, target, source, **options):
        return len(plan_copy(shape, 4, target, source, **options))

    assert count((10, 20), (80, 4), (80, 4)) == 1
    assert count((10, 20), (80, 4), (160, 4)) == 1  # rows a pitch apart
    assert count((5, 10, 20), (800, 80, 4), (1600, 160, 4)) == 1  # and so are they in blocks
    assert count((10, 20), (80, 4), (4, 40)) == 10  # transposed: by the shorter side
    assert count((0, 20), (80, 4), (80, 4)) == 0
    assert count((), (), ()) == 1
    assert count((10, 20), (80, 4), (160, 4), has_pitch=False) == 10


def test_too_scattered():
    with pytest.raises(tz.InputError, match="make it contiguous first"):
        plan_copy((MOST_PIECES + 1, 2, 2), 4, (16, 8, 4), (100, 40, 12), has_pitch=False)
    plan_copy((MOST_PIECES, 1, 1), 4, (4, 4, 4), (100, 40, 12), has_pitch=False)
