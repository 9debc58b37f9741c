"""The bytes of HTTP requests, and what is made of answers."""

from __future__ import annotations

import json

import pytest
from http_servers import BINARY_JSON, BODY
from hypothesis import given, settings
from hypothesis import strategies as st

import triton_zerocopy as tz
from triton_zerocopy._endings import Ending, ending_of, public_error
from triton_zerocopy._http.exchange import Response
from triton_zerocopy._http.problems import ConnectionBroke, NotConnected
from triton_zerocopy._transports.base import (
    DEFAULT_OPTIONS,
    CallOptions,
    InferRequest,
    InputRef,
    MemoryRef,
    OutputRef,
    ServerError,
)
from triton_zerocopy._transports.http_replies import InferReader, PlainReader, read_json
from triton_zerocopy._transports.http_requests import Requests, compose, model_path, segment

pytestmark = pytest.mark.once

REQUESTS = Requests("h:1", {"authorization": "me"})
SHARED_IN = InputRef("A", "FP32", (2, 3), MemoryRef("r", 64, 24))
SHARED_OUT = OutputRef("Y", MemoryRef("r", 0, 24))
INLINE = InputRef("B", "BYTES", (1,))


def parts(message):
    """Return (first line, headers, JSON, binary) of a request."""
    head, _, body = message.partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    headers = dict(line.split(": ") for line in lines)
    assert int(headers["Content-Length"]) == len(body)
    length = int(headers.get("Inference-Header-Content-Length", len(body)))
    return first, headers, json.loads(body[:length]), body[length:]


# Requests


def test_a_request_that_stays_the_same_is_made_once():
    prepared = REQUESTS.prepare(InferRequest("m", "3", [SHARED_IN], [SHARED_OUT]))
    message = compose(prepared, (), DEFAULT_OPTIONS)
    assert message is prepared.plain
    first, headers, document, binary = parts(message)
    assert first == "POST /v2/models/m/versions/3/infer HTTP/1.1"
    assert headers == {
        "host": "h:1",
        "authorization": "me",
        "Content-Type": "application/json",
        "Content-Length": headers["Content-Length"],
    }
    assert document == {
        "inputs": [
            {
                "name": "A",
                "datatype": "FP32",
                "shape": [2, 3],
                "parameters": {
                    "shared_memory_region": "r",
                    "shared_memory_byte_size": 24,
                    "shared_memory_offset": 64,
                },
            }
        ],
        "outputs": [
            {
                "name": "Y",
                "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 24},
            }
        ],
    }
    assert binary == b""


def test_inline_inputs_follow_the_json_in_their_order():
    inputs = [INLINE, SHARED_IN, InputRef("C", "INT8", (0,)), InputRef("D", "INT8", (12,))]
    prepared = REQUESTS.prepare(InferRequest("m", "", inputs, [OutputRef("Y"), SHARED_OUT]))
    assert prepared.plain is None
    payloads = [memoryview(b"\1\0\0\0x"), memoryview(b""), memoryview(b"0123456789ab")]
    first, headers, document, binary = parts(compose(prepared, payloads, DEFAULT_OPTIONS))
    assert first == "POST /v2/models/m/infer HTTP/1.1"
    assert headers["Content-Type"] == "application/octet-stream"
    sizes = [each["parameters"].get("binary_data_size") for each in document["inputs"]]
    assert sizes == [5, None, 0, 12]
    assert [each["name"] for each in document["inputs"]] == ["B", "A", "C", "D"]
    assert document["outputs"][0] == {"name": "Y", "parameters": {"binary_data": True}}
    assert binary == b"\1\0\0\0x0123456789ab"
    with pytest.raises(ValueError, match="zip"):
        compose(prepared, payloads[:2], DEFAULT_OPTIONS)


def test_all_outputs_are_wanted_as_binary_data():
    prepared = REQUESTS.prepare(InferRequest("m", "", [SHARED_IN], []))
    _, _, document, _ = parts(prepared.plain)
    assert document["parameters"] == {"binary_data_output": True}
    assert "outputs" not in document
    options = CallOptions(parameters={"a": 1})
    _, _, document, _ = parts(compose(prepared, (), options))
    assert document["parameters"] == {"a": 1, "binary_data_output": True}


def test_options():
    prepared = REQUESTS.prepare(InferRequest("m", "", [SHARED_IN], [SHARED_OUT]))
    given = {"i": -3, "f": 1.5, "b": True, "s": 'é"\r\n\\'}
    options = CallOptions("id é", 2, 5000, given)
    _, _, document, _ = parts(compose(prepared, (), options))
    assert document["id"] == "id é"
    assert document["parameters"] == {**given, "priority": 2, "timeout": 5000}


@pytest.mark.parametrize(
    "options",
    [
        CallOptions("a\r\nb"),
        CallOptions("a\0"),
        CallOptions("\ud800"),
        CallOptions(parameters={"x": float("nan")}),
        CallOptions(parameters={"x": float("inf")}),
        CallOptions(parameters={"x": "\ud800"}),
        CallOptions(parameters={"\ud800": 1}),
    ],
)
def test_options_that_cannot_be_sent(options):
    prepared = REQUESTS.prepare(InferRequest("m", "", [SHARED_IN], [SHARED_OUT]))
    with pytest.raises(tz.InputError):
        compose(prepared, (), options)


def test_names_in_paths_are_encoded():
    assert model_path("a b/é?#%\"'&=;", "") == "/v2/models/a%20b%2F%C3%A9%3F%23%25%22%27%26%3D%3B"
    assert model_path("A-z_0.9~", "12") == "/v2/models/A-z_0.9~/versions/12"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a\r\nb", "a\nGET / HTTP/1.1", "\0", "\x7f", "\ud800"]
)
def test_names_that_cannot_be_in_a_path(name):
    with pytest.raises(tz.InputError):
        segment(name)
    with pytest.raises(tz.InputError):
        REQUESTS.prepare(InferRequest(name, "", [SHARED_IN], [SHARED_OUT]))
    if name:
        with pytest.raises(tz.InputError):
            model_path("m", name)


@given(name=st.text(max_size=12), version=st.text(max_size=6), key=st.text(max_size=12))
@settings(max_examples=100, deadline=None)
def test_no_name_breaks_out_of_its_place(name, version, key):
    options = CallOptions(key, parameters={"k": key})
    request = InferRequest(name, version, [SHARED_IN], [SHARED_OUT])
    try:
        message = compose(REQUESTS.prepare(request), (), options)
    except tz.InputError:
        return
    first, headers, document, _ = parts(message)
    assert first.split(" ")[::2] == ["POST", "HTTP/1.1"]
    assert first.split(" ")[1].count("/") == (6 if version else 4)
    assert len(headers) == 4
    assert document["parameters"]["k"] == key


def test_a_host_of_the_users_own():
    requests = Requests("h:1", {"host": "triton.internal"})
    assert requests.get("/v2") == b"GET /v2 HTTP/1.1\r\nhost: triton.internal\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        {"a b": "x"},
        {"a:b": "x"},
        {"a\r\nb": "x"},
        {"a": "x\r\nb: y"},
        {"a": "x\n"},
        {"é": "x"},
        {"Content-Length": "5"},
        {"transfer-encoding": "chunked"},
        {"Accept-Encoding": "gzip"},
        {"Inference-Header-Content-Length": "5"},
        {"Connection": "close"},
        {"Expect": "100-continue"},
    ],
)
def test_headers_that_would_be_something_else(headers):
    for each in ({"headers": headers}, {"admin_headers": headers}):
        with pytest.raises(tz.InputError):
            tz.Client("http://localhost:8000", **each)


# Answers


def read(body, status=200, **headers):
    named = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    return InferReader().read(Response(status, named, body))


def test_a_reply():
    document = json.loads(BODY) | {"id": "me", "parameters": {"a": 1, "b": "c", "d": None}}
    reply = read(json.dumps(document).encode())
    assert reply[:4] == ("m", "1", "me", {"a": 1, "b": "c"})
    assert reply.outputs == [("Y", "FP32", (4,), b"")]


def test_binary_data():
    length = b"%d" % len(BINARY_JSON)
    for body in (BINARY_JSON + b"abcd", bytearray(BINARY_JSON + b"abcd")):
        reply = read(body, inference_header_content_length=length)
        assert reply.outputs == [("Y", "FP32", (1,), b"abcd")]
        with pytest.raises(TypeError):
            reply.outputs[0].data[0] = 1


def with_output(**entry):
    document = json.loads(BODY)
    document["outputs"][0] |= entry
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"", None),
        (b"[]", None),
        (b"null", None),
        (b"<html>hello</html>", None),
        (b"{" * 100_000, None),
        (b"[" * 100_000, None),
        (b"{}", None),
        (b"\xff" + BODY, None),
        (BODY[:-1], None),
        (BODY + b"x", None),
        (BODY, b"-1"),
        (BODY, b"%d" % (len(BODY) + 1)),
        (BODY, b"x"),
        (BODY, b"1" * 5000),
        (BODY + b"abcd", b"%d" % len(BODY)),
        (BINARY_JSON + b"abc", b"%d" % len(BINARY_JSON)),
        (BINARY_JSON + b"abcde", b"%d" % len(BINARY_JSON)),
        (BINARY_JSON, None),
        (with_output(shape=[True]), None),
        (with_output(shape=[1.5]), None),
        (with_output(shape="4"), None),
        (with_output(shape=None), None),
        (with_output(name=5), None),
        (with_output(datatype=None), None),
        (with_output(parameters={"binary_data_size": -1}), None),
        (with_output(parameters={"binary_data_size": "4"}), None),
        (with_output(parameters=[]), None),
        (with_output(shape=[]).replace(b"[]", b"[" + b"9" * 5000 + b"]"), None),
        (BODY.replace(b'"m"', b"5"), None),
        (BODY.replace(b'"1"', b"null"), None),
    ],
)
def test_what_is_no_reply(body, length):
    """Something else has answered; whether the request runs nobody knows."""
    headers = {} if length is None else {"inference_header_content_length": length}
    with pytest.raises(ServerError, match="unreadable answer") as raised:
        read(body, **headers)
    assert ending_of(raised.value) is Ending.AMBIGUOUS


@given(
    body=st.binary(max_size=40) | st.sampled_from([BODY, BINARY_JSON]), length=st.integers(-2, 99)
)
@settings(max_examples=150, deadline=None)
def test_any_body_is_a_reply_or_an_error(body, length):
    for headers in ({}, {"inference_header_content_length": b"%d" % length}):
        try:
            read(body, **headers)
        except ServerError:
            pass


def test_sizes_that_only_add_up():
    """More than there is, and less than nothing."""
    document = json.loads(BINARY_JSON)
    for size in (8, -4):
        entry = {**document["outputs"][0], "parameters": {"binary_data_size": size}}
        document["outputs"].append(entry)
    del document["outputs"][0]
    head = json.dumps(document).encode()
    with pytest.raises(ServerError, match="unreadable answer"):
        read(head + b"abcd", inference_header_content_length=b"%d" % len(head))


def error(text):
    return json.dumps({"error": text}).encode()


@pytest.mark.parametrize(
    ("status", "text", "code", "ending"),
    [
        (400, "unexpected shape", "INVALID_ARGUMENT", Ending.ANSWERED),
        (400, "shared memory region 'r' already in manager", "ALREADY_EXISTS", Ending.ANSWERED),
        (403, "This API is restricted, expecting header 'x'", "UNAVAILABLE", Ending.NOT_RUN),
        (404, "Request for unknown model: 'm' is not found", "NOT_FOUND", Ending.ANSWERED),
        (404, "Unable to find shared memory region: 'r'", "NOT_FOUND", Ending.REGION_LOST),
        (405, "Method Not Allowed", "UNIMPLEMENTED", Ending.ANSWERED),
        (499, "cancelled", "CANCELLED", Ending.AMBIGUOUS),
        (500, "the model failed", "INTERNAL", Ending.ANSWERED),
        (501, "Client shared memory is disabled.", "UNIMPLEMENTED", Ending.ANSWERED),
        (503, "Request timeout expired", "UNAVAILABLE", Ending.NOT_RUN),
        (503, "Exceeds maximum queue size", "UNAVAILABLE", Ending.NOT_RUN),
        (503, "something else", "UNAVAILABLE", Ending.AMBIGUOUS),
        (504, "a gateway that writes JSON", "DEADLINE_EXCEEDED", Ending.AMBIGUOUS),
        (502, "so does this one", "UNAVAILABLE", Ending.AMBIGUOUS),
        (429, "too many", "RESOURCE_EXHAUSTED", Ending.AMBIGUOUS),
        (302, "elsewhere", "UNKNOWN", Ending.AMBIGUOUS),
    ],
)
def test_errors_of_triton(status, text, code, ending):
    with pytest.raises(ServerError) as raised:
        read(error(text), status)
    assert (raised.value.code, raised.value.message) == (code, text)
    assert ending_of(raised.value) is ending
    assert isinstance(public_error(raised.value), (tz.InferenceError, tz.ServerUnavailable))
    with pytest.raises(ServerError):
        read_json(Response(status, {}, error(text)))


@pytest.mark.parametrize(
    ("status", "code", "ending"),
    [
        (204, "UNKNOWN", Ending.AMBIGUOUS),
        (301, "UNKNOWN", Ending.AMBIGUOUS),
        (400, "UNKNOWN", Ending.AMBIGUOUS),
        (401, "UNAUTHENTICATED", Ending.ANSWERED),
        (403, "PERMISSION_DENIED", Ending.ANSWERED),
        (404, "UNIMPLEMENTED", Ending.ANSWERED),
        (413, "INVALID_ARGUMENT", Ending.ANSWERED),
        (500, "UNKNOWN", Ending.AMBIGUOUS),
        (502, "UNAVAILABLE", Ending.AMBIGUOUS),
        (503, "UNAVAILABLE", Ending.AMBIGUOUS),
        (504, "UNAVAILABLE", Ending.AMBIGUOUS),
        (999, "UNKNOWN", Ending.AMBIGUOUS),
    ],
)
@pytest.mark.parametrize(
    "body",
    [
        b"<html>secret header: Bearer 123</html>",
        b"",
        b'{"error":{"secret":1}}',
        b"[" * 100_000,
        b'["error"]',
    ],
)
def test_errors_of_something_on_the_way(status, code, ending, body):
    with pytest.raises(ServerError) as raised:
        read(body, status)
    assert raised.value.code == code
    assert ending_of(raised.value) is ending
    assert str(status) in raised.value.message
    assert "secret" not in raised.value.message, "it may show what it was sent"


def test_errors_hide_regions_and_have_an_end():
    name = "tzc-0123456789abcdef-0123456789abcdef0123456789abcdef"
    with pytest.raises(ServerError) as raised:
        read(error(f"Unable to find shared memory region: '{name}'"), 404)
    assert raised.value.message == "Unable to find shared memory region: '(a region)'"
    with pytest.raises(ServerError) as raised:
        read(error("a" * 100_000), 500)
    assert len(raised.value.message) < 20_000
    with pytest.raises(ServerError, match="not Triton's"):
        read(error("a" * (1 << 20)), 500)


def test_calls_without_an_answer():
    for reader in (InferReader(), PlainReader()):
        broke = reader.explain(ConnectionBroke("it broke"))
        assert (broke.code, ending_of(broke)) == ("UNAVAILABLE", Ending.AMBIGUOUS)
        refused = reader.explain(NotConnected("refused"))
        assert (refused.code, ending_of(refused)) == ("UNAVAILABLE", Ending.NOT_RUN)
