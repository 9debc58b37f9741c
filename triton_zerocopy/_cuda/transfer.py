"""Copies between host arrays and device tensors, in the device's thread.

Each runs on one stream, after the work of the tensors' owners, and is finished when the GPU
has done it. Where that work is on a stream that cannot be named here, all of the GPU is waited
for. After an error, what was queued before it is waited for first: nobody may use the memory
while the GPU still writes there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np

from .._datatypes import Array
from . import cudart
from .copy_plan import plan_copy
from .countdown import Countdown, Finish
from .device import Device
from .views import DeviceView, packed_strides


class Bindable(Protocol):
    """A `DeviceArray`, whose memory may not be there before its first use."""

    def bind(self) -> None: ...
    def view(self) -> DeviceView: ...


Side = Array | DeviceView | Bindable
"""One end of a copy."""

Pair = tuple[Side, Side]
"""Target and source of a copy, of one shape and datatype."""


def run_copies(device: Device, pairs: Sequence[Pair], finish: Finish) -> None:
    """Copy, and call ``finish`` when all is done. In the device's thread.

    What is copied is kept until then: whoever asked for it may have left.
    """
    _run(device, pairs, finish, is_ordered=False)


def _run(device: Device, pairs: Sequence[Pair], finish: Finish, *, is_ordered: bool) -> None:
    copies = _Copies(device, partial(_finish_with, list(pairs), finish), is_ordered)
    for target, source in pairs:
        copies.add(target, source)
    copies.close()


def _finish_with(_pairs: list[Pair], finish: Finish, error: BaseException | None) -> None:
    finish(error)


class _Unordered(Exception):
    """What comes before a copy is on a stream that has no name here."""


class _Copies:
    """Some copies, and who waits for all of them.

    Args:
        device: queues them.
        finish: called when all are done.
        is_ordered: True if what was to come before is done already.
    """

    def __init__(self, device: Device, finish: Finish, is_ordered: bool) -> None:
        self._device = device
        self._is_ordered = is_ordered
        self._streams: set[int] = set()
        self._count = Countdown(finish)

    def add(self, target: Side, source: Side) -> None:
        def copy() -> None:
            try:
                self._copy(_resolved(target), _resolved(source))
            except _Unordered:
                self._count.more()
                self._device.streams.when_idle(partial(self._copy_idle, (target, source)))

        self._count.guard(copy)

    def _copy_idle(self, pair: Pair, error: BaseException | None) -> None:
        if error is not None:
            self._count.done(error)
        else:
            _run(self._device, [pair], self._count.done, is_ordered=True)

    def close(self) -> None:
        for stream in self._streams:
            self._count.more()
            try:
                self._device.streams.when_reached(stream, self._count.done)
            except BaseException as error:  # noqa: BLE001 # the waiter's
                self._count.done(error)
        self._count.close()

    def _copy(self, target: Array | DeviceView, source: Array | DeviceView) -> None:
        if isinstance(target, DeviceView):
            if isinstance(source, DeviceView):
                self._between(target, source)
            else:
                self._up(target, source)
        elif isinstance(source, DeviceView):
            self._down(target, source)
        else:
            np.copyto(target, source, casting="equiv")

    def _begin(self, *sides: DeviceView) -> int:
        """Return the stream of a copy, ordered after what comes before."""
        here = [side for side in sides if side.device_id == self._device.id]
        stream = next((side.stream for side in here if side.stream), 0)
        after = frozenset().union(*(side.after for side in here))
        streams = self._device.streams
        if not stream:
            stream = streams.guest() if after else streams.own()
        self._streams.add(stream)
        if not self._is_ordered and not streams.order(stream, after):
            raise _Unordered
        return stream

    def _between(self, target: DeviceView, source: DeviceView) -> None:
        is_across = target.device_id != source.device_id
        pieces = plan_copy(
            target.shape, target.itemsize, target.strides, source.strides, has_pitch=not is_across
        )
        if not pieces:
            return
        stream = self._begin(target, source)
        for piece in pieces:
            to, of = target.address + piece.target, source.address + piece.source
            if is_across:
                assert target.device_id is not None
                assert source.device_id is not None
                cudart.copy_across(to, target.device_id, of, source.device_id, piece.width, stream)
            elif piece.height == 1:
                cudart.copy(to, of, piece.width, stream)
            else:
                cudart.copy_rows(
                    to,
                    piece.target_pitch,
                    of,
                    piece.source_pitch,
                    piece.width,
                    piece.height,
                    stream,
                )

    def _up(self, target: DeviceView, source: Array) -> None:
        if not source.nbytes:
            return
        stream = self._begin(target)
        if target.is_contiguous:
            self._device.staging.upload(target.address, source, stream, self._count)
            return
        # Into somebody's strided tensor: CUDA takes the host's bytes itself, piece by piece.
        packed = np.ascontiguousarray(source, source.dtype.newbyteorder("="))
        packed_steps = packed_strides(packed.shape, packed.itemsize)
        for piece in plan_copy(packed.shape, packed.itemsize, target.strides, packed_steps):
            to, of = target.address + piece.target, packed.ctypes.data + piece.source
            cudart.copy_rows(
                to,
                piece.target_pitch or piece.width,
                of,
                piece.source_pitch or piece.width,
                piece.width,
                piece.height,
                stream,
            )
        self._count.more()
        self._device.streams.when_reached(stream, partial(self._done_with, packed))

    def _done_with(self, _packed: Array, error: BaseException | None) -> None:
        self._count.done(error)

    def _down(self, target: Array, source: DeviceView) -> None:
        if not target.nbytes:
            return
        stream = self._begin(source)
        self._device.staging.download(target, source.address, stream, self._count)


def _resolved(side: Side) -> Array | DeviceView:
    if isinstance(side, (np.ndarray, DeviceView)):
        return side
    side.bind()
    return side.view()
