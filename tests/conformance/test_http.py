"""Requests and answers of HTTP, to the byte."""

from __future__ import annotations

import json
import socket

import pytest
from support import needs_strings

from .raw import floats, placed

X, Y = floats(0, 1, 2, 3), floats(1, 2, 3, 4)
HEAD = {"name": "INPUT0", "datatype": "FP32", "shape": [4]}
JSON_IN = HEAD | {"data": [0, 1, 2, 3]}
BINARY_IN = HEAD | {"parameters": {"binary_data_size": 16}}
BINARY_OUT = {"name": "OUTPUT0", "parameters": {"binary_data": True}}
JSON_TYPE, PLAIN = ("Content-Type", "application/json"), ("Content-Type", "text/plain")
ID = "[request id: <id_unknown>] "


def answer(web, body, binary=b"", model="fixed"):
    status, headers, content = web.infer(body, binary, model)
    assert status == 200, content
    return headers, content


def test_json_in_and_out(web):
    headers, content = answer(web, {"inputs": [JSON_IN]})
    assert headers == [JSON_TYPE, ("Content-Length", "128")]
    assert content == (
        b'{"model_name":"fixed","model_version":"1","outputs":[{"name":"OUTPUT0","datatype":"FP32",'
        b'"shape":[4],"data":[1.0,2.0,3.0,4.0]}]}'
    )


def test_binary_in_and_out(web):
    headers, content = answer(web, {"id": "abc", "inputs": [BINARY_IN], "outputs": [BINARY_OUT]}, X)
    assert headers == [
        ("Content-Type", "application/octet-stream"),
        ("Inference-Header-Content-Length", "151"),
        ("Content-Length", "167"),
    ]
    assert content[:151] == (
        b'{"id":"abc","model_name":"fixed","model_version":"1","outputs":[{"name":"OUTPUT0",'
        b'"datatype":"FP32","shape":[4],"parameters":{"binary_data_size":16}}]}'
    )
    assert content[151:] == Y
    by_default = {"inputs": [BINARY_IN], "parameters": {"binary_data_output": True}}
    assert answer(web, by_default, X)[1].endswith(b"}]}" + Y)


def test_an_output_in_shared_memory_has_no_data(web, region, memory):
    memory.write(X)
    headers, content = answer(
        web,
        {
            "inputs": [HEAD | {"parameters": placed(region)}],
            "outputs": [{"name": "OUTPUT0", "parameters": placed(region, 16, 64)}],
        },
    )
    assert headers == [JSON_TYPE, ("Content-Length", "103")]
    assert content == (
        b'{"model_name":"fixed","model_version":"1","outputs":[{"name":"OUTPUT0","datatype":"FP32",'
        b'"shape":[4]}]}'
    )
    assert memory.read(16, 64) == Y


def test_all_three_at_once(web, region, memory):
    """Binary data belongs to the tensors that have no other place, in their order."""
    entry = {"datatype": "INT32", "shape": [4]}
    a = entry | {"name": "A", "parameters": {"binary_data_size": 16}}
    b = entry | {"name": "B", "data": [1, 1, 1, 1]}
    outputs = [
        {"name": "SUM", "parameters": placed(region, 16, 32)},
        {"name": "DIFFERENCE", "parameters": {"binary_data": True}},
    ]
    four = b"".join(i.to_bytes(4, "little") for i in (5, 6, 7, 8))
    _, content = answer(web, {"inputs": [b, a], "outputs": outputs}, four, "two")
    assert content.endswith(b"".join(i.to_bytes(4, "little") for i in (4, 5, 6, 7)))
    assert memory.read(16, 32) == b"".join(i.to_bytes(4, "little") for i in (6, 7, 8, 9))


@needs_strings
def test_strings_as_json(web):
    text = {"name": "TEXT", "datatype": "BYTES", "shape": [2, 1], "data": ["aé", 'b"']}
    _, content = answer(web, {"inputs": [text]}, model="shout")
    assert content.decode().endswith(r'"shape":[2,1],"data":["AéAé","B\"B\""]}]}')


def test_nested_data(web):
    _, content = answer(web, {"inputs": [HEAD | {"data": [[0, 1], [2, 3]]}]})
    assert json.loads(content)["outputs"][0]["data"] == [1, 2, 3, 4]


ONE = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters',"
    " 'shared_memory_region' in 'parameters'. But"
)
UNSIGNED = "attempt to access JSON non-unsigned-integer as unsigned-integer"


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"inputs": [HEAD]}, 400, f"{ONE} no field is set"),
        (
            {"inputs": [JSON_IN | {"parameters": placed("r")}]},
            400,
            f"{ONE} set 'data' 'shared_memory_region'",
        ),
        (
            {"inputs": [HEAD | {"parameters": placed("nope")}]},
            404,
            "Unable to find shared memory region: 'nope'",
        ),
        (
            {"inputs": [HEAD | {"parameters": placed("r", -1)}]},
            500,
            f"Unable to parse 'shared_memory_byte_size': {UNSIGNED}",
        ),
        (
            {"inputs": [HEAD | {"parameters": placed("r", 16, -1)}]},
            500,
            f"Unable to parse 'shared_memory_offset': {UNSIGNED}",
        ),
        (
            {"inputs": [HEAD | {"parameters": placed(5)}]},
            500,
            "Unable to parse 'shared_memory_region': attempt to access JSON non-string as string",
        ),
        (
            {
                "inputs": [JSON_IN],
                "outputs": [{"name": "OUTPUT0", "parameters": placed("r") | {"binary_data": True}}],
            },
            400,
            "Output can't set both 'shared_memory_region' and 'binary_data'",
        ),
        (
            {
                "inputs": [JSON_IN],
                "outputs": [{"name": "OUTPUT0", "parameters": placed("r") | {"classification": 1}}],
            },
            400,
            "Output can't set both 'shared_memory_region' and 'classification'",
        ),
        (
            {"inputs": [JSON_IN], "outputs": [{"name": "NOPE"}]},
            400,
            "unexpected inference output 'NOPE' for model 'fixed'",
        ),
        (
            {"inputs": [HEAD | {"data": [0, 1, 2]}]},
            500,
            "Unable to parse 'data': Shape does not match true shape of 'data' field",
        ),
        (
            {"inputs": [HEAD | {"data": ["a", 1, 2, 3]}]},
            500,
            "Unable to parse 'data': attempt to access JSON non-number as double",
        ),
        (
            {"inputs": [HEAD | {"shape": [-4], "data": [1]}]},
            500,
            f"Unable to parse 'shape': {UNSIGNED}",
        ),
        (
            {},
            500,
            "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'",
        ),
        (
            {"inputs": [JSON_IN], "parameters": {"triton_x": 1}},
            400,
            (
                "parameter keys starting with 'triton_' are reserved for Triton usage and should not be"
                " specified."
            ),
        ),
        (
            {"inputs": [HEAD | {"shape": [3], "data": [1, 2, 3]}]},
            400,
            f"{ID}unexpected shape for input 'INPUT0' for model 'fixed'. Expected [4], got [3]. ",
        ),
    ],
)
def test_bodies_that_are_refused(web, body, status, text):
    path = "/v2/models/fixed/infer"
    got, headers, content = web("POST", path, body)
    assert (got, json.loads(content)) == (status, {"error": text})
    assert headers[0] == JSON_TYPE


@pytest.mark.parametrize(
    ("size", "data", "text"),
    [
        (16, X + b"xx", "unexpected additional input data for model 'fixed'"),
        (
            20,
            X,
            "unexpected size for input 'INPUT0', expecting 4 additional bytes for model 'fixed'",
        ),
    ],
)
def test_binary_data_that_does_not_fit(web, size, data, text):
    body = {"inputs": [HEAD | {"parameters": {"binary_data_size": size}}]}
    status, _, content = web.infer(body, data)
    assert (status, json.loads(content)["error"]) == (400, text)


def test_a_header_length_that_is_too_long(web):
    body = json.dumps({"inputs": [JSON_IN]})
    status, _, content = web(
        "POST", "/v2/models/fixed/infer", body, Inference_Header_Content_Length=len(body) + 1
    )
    text = f"inference header size should be in range (0, {len(body)}), got: {len(body) + 1}"
    assert (status, json.loads(content)["error"]) == (400, text)


def test_a_missing_byte_size_is_none(web, region):
    """Unlike gRPC."""
    parameters = {"shared_memory_region": region}
    status, _, content = web.infer({"inputs": [HEAD | {"parameters": parameters}]})
    text = f"Invalid offset + byte size for shared memory region: '{region}'"
    assert (status, json.loads(content)["error"]) == (400, text)


def test_an_error_of_the_model_is_plain_text(web, region):
    """Its type is; the body is JSON all the same."""
    body = {"inputs": [JSON_IN]}
    status, headers, content = web.infer(body, model="fail")
    assert status == 500
    assert content == b'{"error":"ValueError: this model never works"}'
    assert headers == [("Content-Length", "46"), PLAIN]
    body["outputs"] = [{"name": "OUTPUT0", "parameters": placed(region, 12)}]
    status, headers, content = web.infer(body)
    assert (status, headers[-1]) == (500, PLAIN)
    assert b"(12 bytes) should be at least 16 bytes to hold the results" in content


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/v2/models/nope/infer", 404, "Request for unknown model: 'nope' is not found"),
        (
            "/v2/models/stream/infer",
            501,
            "HTTP end point doesn't support models with decoupled transaction policy",
        ),
        ("/v2/nowhere", 404, "Not Found"),
    ],
)
def test_paths_that_cannot_be_asked(web, path, status, text):
    assert web.refusal("POST", path, {}) == (status, text)


@pytest.mark.parametrize(
    ("verb", "path", "first"),
    [
        ("POST", "/v2/health/live", ("Content-Length", "30")),
        ("GET", "/v2/models/fixed/infer", ("Content-Length", "30")),
        ("POST", "/v2", JSON_TYPE),
        ("GET", "/v2/systemsharedmemory/region/x/register", JSON_TYPE),
        ("POST", "/v2/systemsharedmemory/status", JSON_TYPE),
    ],
)
def test_wrong_verbs(web, verb, path, first):
    status, headers, content = web(verb, path, b"")
    assert (status, headers[0], content) == (405, first, b'{"error":"Method Not Allowed"}')


def test_health(web):
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/fixed/ready"):
        assert web("GET", path) == (200, [("Content-Length", "0"), PLAIN], b"")


def exchange(server, data):
    """Send bytes, and return all that comes until the server hangs up."""
    host, port = server.http_url.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(data)
        received = b""
        while part := connection.recv(1 << 16):
            received += part
    return received


def test_a_connection_that_is_to_be_closed(server):
    request = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert exchange(server, request) == (
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n"
        b"Content-Type: text/plain\r\n\r\n"
    )


def test_what_is_no_http_is_not_answered(server):
    assert exchange(server, b"GARBAGE\r\n\r\n") == b""


def test_a_large_body_that_waits_to_be_asked_for(server):
    """`Expect: 100-continue`, as curl sends it."""
    body = json.dumps({"inputs": [JSON_IN]}).encode()
    host, port = server.http_url.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /v2/models/fixed/infer HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n")
        connection.sendall(body)
        received = b""
        while part := connection.recv(1 << 16):
            received += part
    assert b'"data":[1.0,2.0,3.0,4.0]' in received
