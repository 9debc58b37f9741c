"""What an error says about the memory of its call: the table, row by row."""

from __future__ import annotations

import asyncio

import pytest

import triton_zerocopy as tz
from triton_zerocopy._endings import Ending, ending_of, outgrown_output, public_error
from triton_zerocopy._transports.base import ServerError


@pytest.mark.parametrize(
    ("code", "message", "ending", "public"),
    [
        ("INVALID_ARGUMENT", "unexpected shape", Ending.ANSWERED, tz.InferenceError),
        ("NOT_FOUND", "Request for unknown model", Ending.ANSWERED, tz.InferenceError),
        ("UNIMPLEMENTED", "decoupled", Ending.ANSWERED, tz.InferenceError),
        ("INTERNAL", "the model failed", Ending.ANSWERED, tz.InferenceError),
        (  # of a model that asks another server
            "INTERNAL",
            "failed to connect to all addresses",
            Ending.ANSWERED,
            tz.InferenceError,
        ),
        ("INTERNAL", "Received RST_STREAM with error code 2", Ending.AMBIGUOUS, tz.InferenceError),
        (
            "NOT_FOUND",
            "Unable to find shared memory region: 'r'",
            Ending.REGION_LOST,
            tz.InferenceError,
        ),
        ("UNAVAILABLE", "no connection was made: x", Ending.NOT_RUN, tz.ServerUnavailable),
        ("UNAVAILABLE", "This API is restricted", Ending.NOT_RUN, tz.ServerUnavailable),
        ("UNAVAILABLE", "Socket closed", Ending.AMBIGUOUS, tz.ServerUnavailable),
        ("UNAVAILABLE", "Stream removed (...)", Ending.AMBIGUOUS, tz.ServerUnavailable),
        (
            "UNAVAILABLE",
            "failed to connect to all addresses; last error: ...",
            Ending.NOT_RUN,
            tz.ServerUnavailable,
        ),
        ("UNAVAILABLE", "Request timeout expired", Ending.NOT_RUN, tz.InferenceError),
        ("UNAVAILABLE", "... Exceeds maximum queue size", Ending.NOT_RUN, tz.InferenceError),
        (
            "UNAVAILABLE",
            "GRPC server is shutting down and has stopped accepting new requests.",
            Ending.NOT_RUN,
            tz.ServerUnavailable,
        ),
        ("CANCELLED", "", Ending.AMBIGUOUS, tz.ServerUnavailable),
        ("DEADLINE_EXCEEDED", "", Ending.AMBIGUOUS, tz.ServerUnavailable),
        ("UNKNOWN", "", Ending.AMBIGUOUS, tz.InferenceError),
        ("RESOURCE_EXHAUSTED", "", Ending.AMBIGUOUS, tz.InferenceError),
        ("DATA_LOSS", "unreadable answer", Ending.ANSWERED, tz.InferenceError),
    ],
)
def test_table(code, message, ending, public):
    error = ServerError(code, message)
    assert ending_of(error) is ending
    assert type(public_error(error, model="m")) is public


def test_a_cancelled_call_is_ambiguous():
    assert ending_of(asyncio.CancelledError()) is Ending.AMBIGUOUS
    assert ending_of(RuntimeError()) is Ending.AMBIGUOUS


def test_an_outgrown_output_is_read_from_the_text():
    text = (
        "shared memory size specified with the request for output 'A 'B'' (12 bytes) should be "
        "at least 16 bytes to hold the results"
    )
    assert outgrown_output(ServerError("INTERNAL", text)) == ("A 'B'", 16)
    assert outgrown_output(ServerError("INTERNAL", "something else")) is None
