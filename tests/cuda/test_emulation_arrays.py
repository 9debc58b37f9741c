"""The array library on the emulated GPU: its streams, and how it lends memory."""

from __future__ import annotations

import gc

import ml_dtypes
import numpy as np
import pytest
from emulated_cuda import _capsules, arrays
from emulated_cuda import runtime as rt
from emulated_cuda.arrays import (
    InterfaceOnly,
    Stream,
    current_stream,
    from_dlpack,
    from_interface,
    from_numpy,
)
from emulated_cuda.asserting import error_of, ok

pytestmark = pytest.mark.once


class Careless:
    """Lends a tensor without letting the consumer wait, as if no protocol were there."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, *, stream, **more):
        return self.tensor.__dlpack__(stream=-1, **more)


@pytest.fixture
def ramp():
    return from_numpy(np.arange(24, dtype=np.float32).reshape(2, 3, 4))


@pytest.mark.parametrize(("lend", "expected"), [(lambda tensor: tensor, 1), (Careless, 0)])
def test_a_consumer_on_another_stream_waits(lend, expected):
    producer, consumer = Stream(), Stream()
    with current_stream(producer):
        tensor = from_numpy(np.zeros(3)).add_(1)
        borrowed = from_dlpack(lend(tensor), stream=consumer)
    with current_stream(consumer):
        assert borrowed.numpy().tolist() == [expected] * 3


def test_what_is_on_neither_stream_is_waited_for_by_nobody():
    busy, consumer = Stream(), Stream()
    tensor = from_numpy(np.zeros(2))
    busy.wait(1)
    with current_stream(busy):
        tensor.add_(1)
    borrowed = from_dlpack(tensor, stream=consumer)
    with current_stream(consumer):
        assert borrowed.numpy().tolist() == [0, 0]
    assert tensor.numpy().tolist() == [0, 0]
    busy.synchronize()
    assert tensor.numpy().tolist() == [1, 1]


@pytest.mark.parametrize("handle", [1, 2])
def test_default_streams_are_passed_by_their_numbers(handle, ramp):
    seen = []

    class Lender(Careless):
        def __dlpack__(self, *, stream, **more):
            seen.append(stream)
            return super().__dlpack__(stream=stream, **more)

    with current_stream(handle):
        assert from_dlpack(Lender(ramp)).shape == (2, 3, 4)
    assert seen == [handle]
    with pytest.raises(ValueError, match="stream=0"):
        ramp.__dlpack__(stream=0)


VIEWS = {
    "whole": lambda t: t,
    "slice": lambda t: t[1:, :, ::2],
    "transposed": lambda t: t.transpose(2, 0, 1),
    "scalar": lambda t: t[1, 2, 3],
    "broadcast": lambda t: t[0, 0].broadcast_to(5, 4),
    "size one": lambda t: t[0, :1].as_strided((1, 4), (999 * 4, 4)),
    "nothing": lambda t: t[:, 3:],
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_old": True},
        {"has_null_strides": True, "has_byte_offset": True},
        {"is_read_only": True},
    ],
    ids=str,
)
def test_views_arrive_as_they_are(name, options, ramp):
    view = VIEWS[name](ramp).exporting(**options)
    expected = view.numpy()
    there = from_dlpack(view)
    assert there.dtype == view.dtype
    assert there.numpy().tolist() == expected.tolist()
    assert there.export.is_read_only == options.get("is_read_only", False)
    through_interface = from_interface(InterfaceOnly(view, stream=1))
    assert through_interface.numpy().tolist() == expected.tolist()


@pytest.mark.parametrize(
    "dtype",
    ["?", "i1", "u2", "i4", "u8", "f2", "f4", "f8", ml_dtypes.bfloat16, ml_dtypes.float8_e5m2],
    ids=str,
)
def test_dtypes_arrive_as_they_are(dtype):
    tensor = from_numpy(np.array([0, 1, 1], dtype))
    there = from_dlpack(tensor)
    assert there.dtype == np.dtype(dtype)
    assert there.numpy().tobytes() == np.array([0, 1, 1], dtype).tobytes()


def test_capsules_have_the_version_that_was_asked_for(ramp):
    for asked, name in (
        ({}, "dltensor"),
        ({"max_version": None}, "dltensor"),
        ({"max_version": (0, 8)}, "dltensor"),
        ({"max_version": (1, 0)}, "dltensor_versioned"),
        ({"max_version": (2, 1)}, "dltensor_versioned"),
    ):
        assert _capsules.name_of(ramp.__dlpack__(**asked)) == name
    with pytest.raises(TypeError, match="unexpected"):
        ramp.exporting(is_old=True).__dlpack__(max_version=(1, 0))
    with pytest.raises(BufferError, match="read-only"):
        ramp.exporting(is_read_only=True).__dlpack__()
    with pytest.raises(BufferError, match="is on"):
        ramp.__dlpack__(dl_device=(1, 0))
    copied, finish = _capsules.take(ramp.__dlpack__(max_version=(1, 0), copy=True))
    assert copied.data != ramp.address
    assert copied.flags == _capsules.IS_COPIED
    finish()


def test_a_tensor_lives_until_its_borrower_is_gone_and_is_given_back_once(ramp, emulation):
    capsule = ramp.__dlpack__(max_version=(1, 0))
    assert arrays.exports() == 1
    del capsule  # nobody took it
    assert arrays.exports() == 0
    there = from_dlpack(ramp)
    with pytest.raises(BufferError, match="used already"):
        used = ramp.__dlpack__()
        _capsules.take(used)[1]()
        _capsules.take(used)
    part = there[0, 0]
    del there
    gc.collect()
    assert arrays.exports() == 1
    assert part.numpy().tolist() == [0, 1, 2, 3]
    del part
    gc.collect()
    assert arrays.exports() == 0
    assert set(_capsules.deleted.values()) == {1}


def test_managed_memory_says_so():
    tensor = from_numpy(np.arange(3), memory="managed")
    assert tensor.__dlpack_device__() == (13, 0)
    assert from_dlpack(tensor).numpy().tolist() == [0, 1, 2]


def test_the_interface_names_the_stream_to_wait_for(ramp):
    stream = Stream()
    with current_stream(stream):
        ramp.add_(1)
        assert ramp.__cuda_array_interface__["stream"] == stream.handle
        lent = InterfaceOnly(ramp, stream=stream.handle)
    bare, none = InterfaceOnly(ramp), InterfaceOnly(ramp, stream=None)
    assert "stream" not in bare.__cuda_array_interface__
    for lender, expected in ((bare, 0), (none, 0), (lent, 1)):
        assert from_interface(lender)[0, 0, 0].numpy() == expected
    with pytest.raises(TypeError, match="GPU"):
        np.asarray(ramp)


def test_memory_goes_back_in_the_order_of_its_own_stream(emulation):
    stream, other = Stream(), Stream()
    with current_stream(stream):
        tensor = from_numpy(np.zeros(3)).fill_(1)
    address = tensor.address
    ok(rt.cudaMemsetAsync(address, 1, 1, other.handle))
    del tensor
    gc.collect()
    assert emulation.live().device == 1
    stream.synchronize()
    assert emulation.live().device == 0
    # What others do with it they must do before; nobody waits for them.
    assert error_of(rt.cudaStreamSynchronize(other.handle)) == "IllegalAddress"
    emulation.reset()
    emulation.install()


def test_tensors_on_two_gpus(emulation):
    emulation.set_devices(2)
    first, second = (from_numpy(np.full(2, n), device=n) for n in range(2))
    assert second.__dlpack_device__() == (2, 1)
    assert from_dlpack(second).add_(5).numpy().tolist() == [6, 6]
    assert first.numpy().tolist() == [0, 0]
    assert ok(rt.cudaGetDevice()) == 0
