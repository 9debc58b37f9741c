"""What is said of the server and its models."""

from __future__ import annotations

import json

import pytest
from google.protobuf import json_format
from models import MODELS

from .conftest import VERSION
from .raw import Grpc, Http, floats, tensor


@pytest.fixture
def both(triton_server, fake_triton):
    """The real server and the fake, side by side."""
    if triton_server.version != VERSION:
        pytest.skip(f"the real server here is {triton_server.version}")
    return triton_server, fake_triton


@pytest.mark.parametrize("call", ["ModelMetadata", "ModelConfig", "ModelReady"])
def test_grpc_says_the_same_of_every_model(both, call):
    told = []
    for server in both:
        with Grpc(server.grpc_url) as rpc:
            told.append({name: rpc(call, name=name) for name in MODELS})
    assert told[0] == told[1]


@pytest.mark.parametrize("path", ["", "/ready", "/versions/1", "/config"])
def test_http_says_the_same_of_every_model(both, path):
    told = []
    for server in both:
        with Http(server.http_url) as web:
            told.append({name: web("GET", f"/v2/models/{name}{path}") for name in MODELS})
    real, fake = told
    if path == "/config":
        # Maps have no order, and the fake has a field of the messages that is newer.
        config, other = (json.loads(each.pop("ensemble")[2]) for each in (real, fake))
        assert other["ensemble_scheduling"].pop("max_inflight_requests") == 0
        assert config == other
    assert real == fake
    assert {status for status, _, _ in fake.values()} == {200}


def test_the_server(server, rpc, web):
    told = rpc("ServerMetadata")
    assert told.version == VERSION
    assert {"system_shared_memory", "cuda_shared_memory"} <= set(told.extensions)
    assert web.get("/v2") == {
        "name": told.name,
        "version": told.version,
        "extensions": list(told.extensions),
    }
    assert rpc("ServerLive").live
    assert rpc("ServerReady").ready


def test_both_have_the_same_extensions(both):
    told = []
    for server in both:
        with Grpc(server.grpc_url) as rpc:
            told.append(list(rpc("ServerMetadata").extensions))
    assert told[0] == told[1]


def test_models_that_are_not_there(rpc, web):
    for name, version, text in [
        ("nope", "", "Request for unknown model: 'nope' is not found"),
        ("fixed", "9", "Request for unknown model: 'fixed' version 9 is not found"),
    ]:
        for call in ("ModelMetadata", "ModelConfig"):
            assert rpc.refusal(call, name=name, version=version) == ("NOT_FOUND", text)
        assert not rpc("ModelReady", name=name, version=version).ready
        path = f"/v2/models/{name}" + (f"/versions/{version}" if version else "")
        assert web.refusal("GET", path) == (404, text)
        assert web.refusal("GET", f"{path}/config") == (404, text)
        assert web.refusal("GET", f"{path}/ready") == (400, "Model version not ready")


def test_the_index(rpc, web):
    entries = [(entry.name, entry.version, entry.state) for entry in rpc("RepositoryIndex").models]
    assert entries == [(name, "1", "READY") for name in sorted(MODELS)]
    _, _, content = web("POST", "/v2/repository/index")
    assert [(e["name"], e["version"], e["state"]) for e in json.loads(content)] == entries
    assert rpc.refusal("RepositoryIndex", repository_name="x") == (
        "UNIMPLEMENTED",
        "'repository_name' specification is not supported",
    )


def test_models_are_not_controlled_unless_that_was_asked_for(rpc, web):
    text = "explicit model load / unload is not allowed if polling is enabled"
    for action in ("Load", "Unload"):
        assert rpc.refusal(f"RepositoryModel{action}", model_name="fixed") == ("UNAVAILABLE", text)
        path = f"/v2/repository/models/fixed/{action.lower()}"
        assert web.refusal("POST", path) == (503, text)


def counted(rpc, model):
    (entry,) = rpc("ModelStatistics", name=model).model_stats
    numbers = entry.inference_stats
    return (
        numbers.success.count,
        numbers.fail.count,
        entry.inference_count,
        entry.execution_count,
    )


def test_statistics_count_what_ran(rpc, region):
    """Rows, not requests, are inferences; what was refused before is not counted at all."""
    before = counted(rpc, "wide_rows")
    rows = tensor(shape=(2, 3), data=floats(1, 1, 1, 1, 1, 1))
    rpc.infer("wide_rows", [rows])
    rpc.infer_refusal("wide_rows", [tensor(shape=(3,), data=bytes(12))])
    after = counted(rpc, "wide_rows")
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 0, 2, 1]


def test_an_error_that_the_model_answers_is_a_success(rpc):
    before = counted(rpc, "fail")
    rpc.infer_refusal("fail", [tensor(data=floats(1, 2, 3, 4))])
    after = counted(rpc, "fail")
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 0, 1, 1]


def test_statistics_over_http_are_those_of_grpc(rpc, web):
    (entry,) = rpc("ModelStatistics", name="fixed").model_stats
    (told,) = web.get("/v2/models/fixed/stats")["model_stats"]
    as_json = json_format.MessageToDict(entry, preserving_proto_field_name=True)
    assert told["name"] == as_json["name"] == "fixed"
    assert told["inference_count"] == int(as_json.get("inference_count", 0))
    assert {each["name"] for each in web.get("/v2/models/stats")["model_stats"]} == set(MODELS)
    text = "requested model 'nope' is not available"
    assert rpc.refusal("ModelStatistics", name="nope") == ("INVALID_ARGUMENT", text)
    assert web.refusal("GET", "/v2/models/nope/stats") == (400, text)
