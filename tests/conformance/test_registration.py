"""Registering shared memory, and what is said of it."""

from __future__ import annotations

import base64
import os
import secrets

import pytest

from .raw import PAGE, Memory, floats, output, tensor, wait_until

SYSTEM = "/v2/systemsharedmemory"
CUDA = "/v2/cudasharedmemory"


@pytest.fixture
def name():
    return f"n-{secrets.token_hex(8)}"


def test_what_is_registered_is_told(rpc, web, memory, name):
    rpc.register(name, memory)
    try:
        (entry,) = rpc("SystemSharedMemoryStatus", name=name).regions.values()
        assert (entry.name, entry.key, entry.offset, entry.byte_size) == (
            name, memory.key, 0, 2 * PAGE,
        )  # fmt: skip
        told = {"name": name, "key": memory.key, "offset": 0, "byte_size": 2 * PAGE}
        assert web.get(f"{SYSTEM}/region/{name}/status") == [told]
        assert told in web.get(f"{SYSTEM}/status")
    finally:
        rpc.unregister(name)
    not_found = f"Unable to find system shared memory region: '{name}'"
    assert rpc.refusal("SystemSharedMemoryStatus", name=name) == ("NOT_FOUND", not_found)
    assert web.refusal("GET", f"{SYSTEM}/region/{name}/status") == (404, not_found)


def test_a_name_is_taken_only_once(rpc, web, memory, name):
    """Also with the same parameters, over the other protocol, and for the other kind."""
    rpc.register(name, memory)
    text = f"shared memory region '{name}' already in manager"
    fields = {"name": name, "key": memory.key, "byte_size": 2 * PAGE}
    assert rpc.refusal("SystemSharedMemoryRegister", **fields) == ("ALREADY_EXISTS", text)
    body = {"key": memory.key, "byte_size": 2 * PAGE}
    assert web.refusal("POST", f"{SYSTEM}/region/{name}/register", body) == (400, text)
    fields = {"name": name, "raw_handle": bytes(64), "device_id": 0, "byte_size": 8}
    assert rpc.refusal("CudaSharedMemoryRegister", **fields) == ("ALREADY_EXISTS", text)
    rpc.unregister(name)


OPENING = "Unable to open shared memory region: '{key}'"
ARGUMENTS = "failed to register shared memory region '{name}': invalid args"
MAPPING = (
    "failed to register shared memory region '{name}': unable to process address"
    " spaceInvalid argument"
)


@pytest.mark.parametrize(
    ("key", "offset", "byte_size", "code", "status", "text"),
    [
        ("/tzc-there-is-none", 0, 8, "INTERNAL", 500, OPENING),
        ("", 0, 8, "INTERNAL", 500, OPENING),
        ("/", 0, 8, "INTERNAL", 500, OPENING),
        ("/a/b", 0, 8, "INTERNAL", 500, OPENING),
        ("/" + 256 * "x", 0, 8, "INTERNAL", 500, OPENING),
        (None, 0, 2 * PAGE + 1, "INVALID_ARGUMENT", 400, ARGUMENTS),
        (None, 2 * PAGE, 1, "INVALID_ARGUMENT", 400, ARGUMENTS),
        (None, PAGE, PAGE + 1, "INVALID_ARGUMENT", 400, ARGUMENTS),
        (None, 100, 8, "INVALID_ARGUMENT", 400, MAPPING),
        (None, 0, 0, "INVALID_ARGUMENT", 400, MAPPING),
        (None, PAGE, 2**64 - PAGE, "INVALID_ARGUMENT", 400, None),
    ],
)
def test_what_cannot_be_mapped(rpc, web, memory, name, key, offset, byte_size, code, status, text):
    key = memory.key if key is None else key
    expected = (text or MAPPING).format(name=name, key=key)
    if text is None:
        expected = expected.replace("Invalid argument", "Cannot allocate memory")
    fields = {"key": key, "offset": offset, "byte_size": byte_size}
    assert rpc.refusal("SystemSharedMemoryRegister", name=name, **fields) == (code, expected)
    path = f"{SYSTEM}/region/{name}/register"
    assert web.refusal("POST", path, fields) == (status, expected)
    assert not rpc.is_registered(name)


@pytest.mark.parametrize("slashes", ["", "/", "//"])
def test_leading_slashes_of_a_key_say_nothing(rpc, memory, name, slashes):
    memory.write(floats(5), 0)
    key = slashes + memory.key.lstrip("/")
    rpc("SystemSharedMemoryRegister", name=name, key=key, byte_size=16)
    assert rpc.registered()[name].key == key
    rpc.unregister(name)


UNSIGNED = "attempt to access JSON non-unsigned-integer as unsigned-integer"


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"byte_size": 8}, 400, "Shared memory register request has no 'key' field"),
        ({"key": "/k"}, 400, "Shared memory register request has no 'byte_size' field"),
        ({"key": 5, "byte_size": 8}, 500, "attempt to access JSON non-string as string"),
        ({"key": "/k", "byte_size": "8"}, 500, UNSIGNED),
        ({"key": "/k", "byte_size": -1}, 500, UNSIGNED),
        ({"key": "/k", "byte_size": 8, "offset": -1}, 500, UNSIGNED),
        (b"", 500, "failed to parse the request JSON buffer: The document is empty. at 0"),
    ],
)
def test_bodies_that_register_nothing(web, name, body, status, text):
    assert web.refusal("POST", f"{SYSTEM}/region/{name}/register", body) == (status, text)


def test_a_name_is_needed(web):
    for kind in ("system", "cuda"):
        assert web.refusal("POST", f"/v2/{kind}sharedmemory/register", {}) == (
            400,
            f"'region name' is necessary to register {kind} shared memory region",
        )


def test_names_are_not_decoded(rpc, web, memory):
    web("POST", f"{SYSTEM}/region/a%20b/register", {"key": memory.key, "byte_size": 8})
    assert rpc.is_registered("a%20b")
    rpc.unregister("a%20b")
    status, _, _ = web("POST", f"{SYSTEM}/region/a/b/register", {"key": memory.key})
    assert status == 404


def test_unregistering_what_is_not_there_is_no_error(rpc, web, region):
    """Not a proof that anything happened: the wrong kind has no effect either."""
    rpc.unregister("never-there")
    rpc("CudaSharedMemoryUnregister", name=region)
    for path in (f"{SYSTEM}/region/never-there", f"{CUDA}/region/{region}"):
        status, headers, body = web("POST", f"{path}/unregister")
        assert (status, body) == (200, b"")
        assert headers == [("Content-Type", "application/json"), ("Content-Length", "0")]
    assert rpc.is_registered(region)


def test_both_protocols_know_the_same_regions(rpc, web, memory, name):
    body = {"key": memory.key, "byte_size": 2 * PAGE}
    status, headers, content = web("POST", f"{SYSTEM}/region/{name}/register", body)
    assert (status, content) == (200, b"")
    assert headers == [("Content-Type", "application/json"), ("Content-Length", "0")]
    memory.write(floats(1, 2, 3, 4))
    rpc.infer(inputs=[tensor(at=(name, 16, 0))], outputs=[output(at=(name, 16, 64))])
    assert memory.floats(4, 64) == [2, 3, 4, 5]
    wait_until(lambda: web("POST", f"{SYSTEM}/region/{name}/unregister")[0] == 200)
    assert not rpc.is_registered(name)


def test_an_unlinked_object_stays_mapped(rpc, name):
    with Memory() as memory:
        rpc.register(name, memory)
    answer = rpc.infer(inputs=[tensor(data=floats(1, 2, 3, 4))], outputs=[output(at=(name, 16, 0))])
    assert answer.raw_output_contents == [b""]
    rpc.unregister(name)


def test_the_old_object_is_used_after_its_key_was_made_again(rpc, name):
    """Nothing tells a client; so keys are never used twice."""
    with Memory() as memory:
        rpc.register(name, memory)
        memory.write(floats(1, 1, 1, 1))
        os.unlink(memory.path)
        with open(memory.path, "wb") as file:
            file.write(floats(7, 7, 7, 7))
        answer = rpc.infer(inputs=[tensor(at=(name, 16, 0))])
        assert answer.raw_output_contents == [floats(2, 2, 2, 2)]
        rpc.unregister(name)


# CUDA, on a server without a GPU


def test_cuda_memory_cannot_be_registered_without_a_gpu(rpc, web, name):
    text = "failed to register shared memory region: invalid args"
    for device in (0, -1, 99):
        fields = {"raw_handle": bytes(64), "device_id": device, "byte_size": 8}
        assert rpc.refusal("CudaSharedMemoryRegister", name=name, **fields) == (
            "INVALID_ARGUMENT",
            text,
        )
    handle = {"b64": base64.b64encode(bytes(64)).decode()}
    body = {"raw_handle": handle, "device_id": 0, "byte_size": 8}
    assert web.refusal("POST", f"{CUDA}/region/{name}/register", body) == (400, text)


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({}, 400, "Shared memory register request has no 'raw_handle' field"),
        ({"raw_handle": 3}, 500, "attempt to access non-existing object member 'b64'"),
        (
            {"raw_handle": {"b64": "AAAAAAAAAAA="}, "device_id": 0, "byte_size": 8},
            400,
            "'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t",
        ),
        (
            {"raw_handle": {"b64": "AAAA"}, "byte_size": 8},
            500,
            "attempt to access non-existing object member 'device_id'",
        ),
    ],
)
def test_bodies_that_register_no_cuda_memory(web, name, body, status, text):
    assert web.refusal("POST", f"{CUDA}/region/{name}/register", body) == (status, text)


def test_cuda_regions_are_asked_for_by_kind(rpc, web, region):
    assert not rpc("CudaSharedMemoryStatus").regions
    assert web.get(f"{CUDA}/status") == []
    text = "Unable to find cuda shared memory region: 'never-there'"
    assert rpc.refusal("CudaSharedMemoryStatus", name="never-there") == ("NOT_FOUND", text)
    text = (
        f"The region named '{region}' is registered as system shared memory, not CUDA shared memory"
    )
    assert rpc.refusal("CudaSharedMemoryStatus", name=region) == ("NOT_FOUND", text)
    assert web.refusal("GET", f"{CUDA}/region/{region}/status") == (404, text)
