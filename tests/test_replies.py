"""Hostile and broken answers: nothing is read that is not there."""

from __future__ import annotations

import numpy as np
import pytest

import triton_zerocopy as tz
from triton_zerocopy._layout import OutputPlace
from triton_zerocopy._replies import check_reply
from triton_zerocopy._requests import Request
from triton_zerocopy._specs import TensorSpec
from triton_zerocopy._transports.base import InferReply, OutputReply
from triton_zerocopy._transports.grpc import GrpcTransport
from triton_zerocopy._transports.messages import varint
from triton_zerocopy._urls import parse_url

ROOM = np.zeros(64, np.uint8)


def ask(output, *, datatype="FP32", byte_size=64, is_inline=False):
    spec = TensorSpec("OUT", datatype, (-1,))
    place = OutputPlace(spec, None, 0 if is_inline else byte_size, None if is_inline else 0)
    request = Request([place], [None], lambda place: ROOM[: place.byte_size])
    outputs = [] if output is None else [output]
    return check_reply("m", InferReply("m", "1", "", {}, outputs), request).outputs[0]


@pytest.mark.parametrize(
    "output",
    [
        None,
        OutputReply("OTHER", "FP32", (1,), b""),
        OutputReply("OUT", "FP64", (1,), b""),
        OutputReply("OUT", "NONSENSE", (1,), b""),
        OutputReply("OUT", "FP32", (17,), b""),
        OutputReply("OUT", "FP32", (-1,), b""),
        OutputReply("OUT", "FP32", (-4, -4), b""),
        OutputReply("OUT", "FP32", (2**62, 4), b""),
        OutputReply("OUT", "FP32", (2**32, 2**32), b""),
    ],
)
def test_what_does_not_fit_a_slot(output):
    with pytest.raises(tz.InferenceError) as raised:
        ask(output)
    assert raised.value.model == "m"


@pytest.mark.parametrize(
    "output",
    [
        OutputReply("OUT", "FP32", (2,), b"1234"),
        OutputReply("OUT", "FP32", (1,), b"12345678"),
        OutputReply("OUT", "FP32", (1,), b""),
        OutputReply("OUT", "FP32", (-1,), b"1234"),
    ],
)
def test_inline_bytes_that_do_not_fit_the_shape(output):
    with pytest.raises(tz.InferenceError):
        ask(output, is_inline=True)


def test_bytes_lengths_that_lie():
    ROOM[:] = 0
    ROOM[:8] = np.frombuffer(b"\x03\0\0\0abc\xff", np.uint8)
    received = ask(OutputReply("OUT", "BYTES", (1,), b""), datatype="BYTES")
    assert received.view().tolist() == [b"abc"]
    received = ask(OutputReply("OUT", "BYTES", (2,), b""), datatype="BYTES")
    with pytest.raises(tz.InferenceError, match="output .*: element 1"):
        received.view()
    with pytest.raises(tz.InferenceError, match="takes 68 bytes"):
        ask(OutputReply("OUT", "BYTES", (17,), b""), datatype="BYTES").view()
    ROOM[:] = 0


def test_fewer_items_than_there_is_room_for():
    """The shape is believed, the rest of the room is never shown."""
    ROOM[:] = 7
    received = ask(OutputReply("OUT", "UINT8", (3,), b""), datatype="UINT8")
    assert received.view().shape == (3,)
    assert received.copy().tolist() == [7, 7, 7]
    assert received.copy().base is None
    ROOM[:] = 0


def test_an_equal_answer_is_checked_once_and_another_again():
    spec = TensorSpec("OUT", "FP32", (-1,))
    request = Request([OutputPlace(spec, None, 64, 0)], [None], lambda place: ROOM)
    good = InferReply("m", "1", "", {}, [OutputReply("OUT", "FP32", (2,), b"")])
    bad = InferReply("m", "1", "", {}, [OutputReply("OUT", "FP32", (99,), b"")])
    first = check_reply("m", good, request).outputs
    assert check_reply("m", good, request).outputs is first
    with pytest.raises(tz.InferenceError):
        check_reply("m", bad, request)
    assert check_reply("m", good, request).outputs[0].shape == (2,)


@pytest.mark.anyio
async def test_remembered_answers_are_bounded_and_hold_no_tensors():
    from tritonclient.grpc import service_pb2

    transport = GrpcTransport(parse_url("127.0.0.1:1"), ssl=None, headers={}, admin_headers={})
    try:
        for number in range(1000):
            answer = service_pb2.ModelInferResponse(model_name="m", id=str(number))
            answer.outputs.add(name="OUT", datatype="FP32", shape=[1])
            answer.raw_output_contents.append(b"" if number % 2 else b"1234")
            reply = transport._parse(answer.SerializeToString())
            assert reply.request_id == str(number)
            assert reply.outputs[0].data == (b"" if number % 2 else b"1234")
        assert len(transport._replies) <= 256
        assert all(not reply.outputs[0].data for reply in transport._replies.values())
    finally:
        await transport.aclose()


@pytest.mark.parametrize(
    ("value", "encoded"), [(0, b"\0"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02")]
)
def test_varints(value, encoded):
    assert varint(value) == encoded
