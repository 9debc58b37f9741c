"""What goes wrong on demand, as raw clients see it."""

from __future__ import annotations

import json
import os
import time
import typing

import pytest
from conformance.raw import Grpc, Http, Memory, floats, output, placed, strings, tensor, wait_until
from models import MODELS
from tritonclient.grpc import service_pb2 as pb

from triton_zerocopy.testing import FakeTriton, Fault, ServerError
from triton_zerocopy.testing._fake.incidents import CRASHED
from triton_zerocopy.testing._faults import Garbage

X, Y = floats(1, 2, 3, 4), floats(2, 3, 4, 5)
JSON_IN = {"name": "INPUT0", "datatype": "FP32", "shape": [4], "data": [1, 2, 3, 4]}
INFER = "/v2/models/fixed/infer"


def infer(rpc):
    return rpc.infer(inputs=[tensor(data=X)]).raw_output_contents


def place(rpc, memory, region):
    """Begin a request that reads the start of a region and writes further on."""
    memory.write(X)
    inputs, outputs = [tensor(at=(region, 16, 0))], [output(at=(region, 16, 64))]
    return rpc.begin_infer(inputs=inputs, outputs=outputs)


def calls_of(fake, name):
    return fake.state().calls.get(name, 0)


# Which calls


def test_faults_befall_the_next_calls_that_fit(fake, rpc):
    fake.inject(
        Fault("ModelInfer", fail=("INTERNAL", "out of luck"), calls=2, skip=1),
        Fault("ModelInfer", model="two", fail=("ABORTED", "not this one")),
        Fault("ServerReady", fail=("DATA_LOSS", "nor that")),
    )
    assert infer(rpc) == [Y]
    for _ in range(2):
        assert rpc.infer_refusal(inputs=[tensor(data=X)]) == ("INTERNAL", "out of luck")
    assert infer(rpc) == [Y]
    assert rpc.infer_refusal("two")[1] == "not this one"
    assert rpc("ServerLive").live
    assert rpc.refusal("ServerReady") == ("DATA_LOSS", "nor that")
    assert rpc("ServerReady").ready


def test_until_they_are_cleared(fake, rpc, web):
    fake.inject(Fault("*", fail=("UNAVAILABLE", "closed"), calls=None))
    for _ in range(3):
        assert rpc.refusal("ServerLive") == ("UNAVAILABLE", "closed")
        assert web.refusal("GET", "/v2/health/ready") == (503, "closed")
    fake.clear()
    assert rpc("ServerLive").live


def test_http_has_the_same_calls(fake, web):
    before = fake.state().calls
    fake.inject(
        Fault("SystemSharedMemoryStatus", fail=("NOT_FOUND", "gone")),
        Fault("ModelInfer", fail=("RESOURCE_EXHAUSTED", "full")),
        Fault("ModelMetadata", fail=("UNAUTHENTICATED", "who")),
    )
    assert web.refusal("GET", "/v2/systemsharedmemory/status") == (404, "gone")
    assert web.refusal("POST", INFER, {}) == (429, "full")
    assert web.refusal("GET", "/v2/models/fixed") == (401, "who")
    web("GET", "/v2")
    after = fake.state().calls
    for name in ("SystemSharedMemoryStatus", "ModelInfer", "ModelMetadata", "ServerMetadata"):
        assert after[name] == before.get(name, 0) + 1


def test_several_faults_of_one_call(fake, rpc, memory, region):
    """Held when it has run, and told of a failure when all is written."""
    fake.inject(
        Fault("ModelInfer", before="writing", hold=True),
        Fault("ModelInfer", before="answering", fail=("INTERNAL", "after all")),
    )
    call = place(rpc, memory, region)
    wait_until(lambda: fake.state().held == 1)
    assert memory.read(16, 64) == bytes(16)
    assert fake.release() == 1
    assert call.refusal() == ("INTERNAL", "after all")
    assert memory.read(16, 64) == Y


# How far a call gets


def test_held_before_it_is_handled(fake, rpc, memory, region):
    fake.inject(Fault("ModelInfer", hold=True))
    call = place(rpc, memory, region)
    wait_until(lambda: fake.state().held == 1)
    state = fake.state()
    assert (dict(state.in_use), state.running) == ({}, 0)
    rpc.unregister(region)
    fake.release()
    assert call.refusal() == ("NOT_FOUND", f"Unable to find shared memory region: '{region}'")


def test_held_before_it_runs(fake, rpc, memory, region):
    """It has an instance, and has read nothing."""
    fake.inject(Fault("ModelInfer", before="running", hold=True))
    call = place(rpc, memory, region)
    wait_until(lambda: fake.state().held == 1)
    state = fake.state()
    assert (state.in_use, state.running, state.queued) == ({region: 2}, 1, 0)
    second = rpc.begin_infer(inputs=[tensor(data=X)])
    wait_until(lambda: fake.state().queued == 1)
    memory.write(floats(5, 5, 5, 5))
    fake.release()
    assert call.result().raw_output_contents == [b""]
    assert memory.floats(4, 64) == [6] * 4
    second.result()


def test_held_before_it_writes(fake, rpc, memory, region):
    fake.inject(Fault("ModelInfer", before="writing", hold=True))
    call = place(rpc, memory, region)
    wait_until(lambda: fake.state().held == 1)
    memory.write(floats(5, 5, 5, 5))
    assert memory.read(16, 64) == bytes(16)
    call.cancel()
    assert call.refusal()[0] == "CANCELLED"
    assert fake.state().in_use == {region: 2}
    fake.release()
    wait_until(lambda: not fake.state().in_use)
    assert memory.read(16, 64) == Y, "it is written late, from what was read before"


def test_held_before_it_answers(fake, rpc, memory, region):
    fake.inject(Fault("ModelInfer", before="answering", hold=True))
    call = place(rpc, memory, region)
    wait_until(lambda: memory.read(16, 64) == Y)
    state = fake.state()
    assert (state.in_use, state.running, state.held) == ({region: 2}, 0, 1)
    assert rpc.refusal("SystemSharedMemoryUnregister", name=region)[0] == "INTERNAL"
    assert not call.done()
    fake.release()
    call.result()


def test_late_answers(fake, rpc, web):
    fake.inject(Fault("ModelInfer", before="answering", delay=0.1, calls=2))
    for call in (lambda: infer(rpc), lambda: web("POST", INFER, {"inputs": [JSON_IN]})):
        began = time.monotonic()
        assert call()
        assert time.monotonic() - began > 0.1


def test_registering_that_is_answered_with_an_error_and_done(fake, rpc, memory):
    fields = {"name": "r", "key": memory.key, "byte_size": 8}
    fake.inject(
        Fault("SystemSharedMemoryRegister", fail=("INTERNAL", "no")),
        Fault("SystemSharedMemoryRegister", skip=1, before="answering", fail=("INTERNAL", "no")),
    )
    assert rpc.refusal("SystemSharedMemoryRegister", **fields) == ("INTERNAL", "no")
    assert not rpc.is_registered("r")
    assert rpc.refusal("SystemSharedMemoryRegister", **fields) == ("INTERNAL", "no")
    assert rpc.is_registered("r")
    rpc.unregister("r")


def test_a_client_that_gave_up_on_registering_is_registered_all_the_same(fake, rpc, memory):
    fake.inject(Fault("SystemSharedMemoryRegister", hold=True))
    with Grpc(fake.grpc_url) as other:
        request = {"name": "r", "key": memory.key, "offset": 0, "byte_size": 8}
        call = other.begin("SystemSharedMemoryRegister", **request)
        wait_until(lambda: fake.state().held == 1)
        call.cancel()
        assert call.refusal()[0] == "CANCELLED"
    fake.release()
    wait_until(lambda: rpc.is_registered("r"))
    rpc.unregister("r")


# Connections


def test_a_dropped_request_was_never_there(fake, rpc, memory, region):
    fake.inject(Fault("ModelInfer", drop=True))
    assert place(rpc, memory, region).refusal()[0] == "UNAVAILABLE"
    assert not fake.state().in_use
    assert memory.read(16, 64) == bytes(16)
    wait_until(lambda: is_answered(rpc))


def is_answered(rpc):
    """Tell whether the connection is there again."""
    try:
        return rpc("ServerLive").live
    except Exception:
        return False


@pytest.mark.parametrize("before", ["running", "writing"])
def test_a_request_whose_connection_is_dropped_goes_on(fake, rpc, memory, region, before):
    fake.inject(
        Fault("ModelInfer", before=before, drop=True),
        Fault("ModelInfer", before="answering", hold=True),
    )
    assert place(rpc, memory, region).refusal()[0] == "UNAVAILABLE"
    wait_until(lambda: memory.read(16, 64) == Y)
    assert fake.state().in_use == {region: 2}
    fake.release()
    wait_until(lambda: not fake.state().in_use)


def test_a_dropped_answer_was_written(fake, rpc, memory, region):
    fake.inject(Fault("ModelInfer", before="answering", drop=True))
    assert place(rpc, memory, region).refusal()[0] == "UNAVAILABLE"
    assert memory.read(16, 64) == Y
    assert not fake.state().in_use


@pytest.mark.parametrize("before", ["running", "writing"])
def test_a_request_that_seems_to_fail_goes_on(fake, rpc, memory, region, before):
    """As with an error that is not the server's own."""
    fake.inject(
        Fault("ModelInfer", before=before, fail=("UNAVAILABLE", "the link broke"), goes_on=True),
        Fault("ModelInfer", before="answering", hold=True),
    )
    call = place(rpc, memory, region)
    assert call.refusal() == ("UNAVAILABLE", "the link broke")
    wait_until(lambda: fake.state().held == 1)
    assert fake.state().in_use == {region: 2}
    assert memory.read(16, 64) == Y
    fake.release()
    wait_until(lambda: not fake.state().in_use)


def test_a_request_of_http_that_seems_to_fail_goes_on(fake, web, memory, region):
    memory.write(X)
    fake.inject(
        Fault("ModelInfer", before="running", fail=("UNAVAILABLE", "gateway"), goes_on=True),
        Fault("ModelInfer", before="writing", hold=True),
    )
    one = {"name": "INPUT0", "datatype": "FP32", "shape": [4], "parameters": placed(region)}
    outputs = [{"name": "OUTPUT0", "parameters": placed(region, 16, 64)}]
    assert web.refusal("POST", INFER, {"inputs": [one], "outputs": outputs}) == (503, "gateway")
    assert fake.state().in_use == {region: 2}
    assert memory.read(16, 64) == bytes(16)
    fake.release()
    wait_until(lambda: not fake.state().in_use)
    assert memory.read(16, 64) == Y


def test_only_that_connection_is_dropped(fake, rpc, memory, region):
    fake.inject(Fault("ModelInfer", before="writing", hold=True))
    call = place(rpc, memory, region)
    wait_until(lambda: fake.state().held == 1)
    with Grpc(fake.grpc_url) as other:
        fake.inject(Fault("ModelInfer", drop=True))
        assert other.begin_infer(inputs=[tensor(data=X)]).refusal()[0] == "UNAVAILABLE"
    fake.release()
    assert call.result().raw_output_contents == [b""]


@pytest.mark.parametrize("before", ["handling", "running", "answering"])
def test_http_connections_are_dropped_too(fake, rpc, memory, region, before):
    memory.write(X)
    fake.inject(Fault("ModelInfer", before=before, drop=True))
    body = {
        "inputs": [
            {"name": "INPUT0", "datatype": "FP32", "shape": [4], "parameters": placed(region)}
        ],
        "outputs": [{"name": "OUTPUT0", "parameters": placed(region, 16, 64)}],
    }
    with Http(fake.http_url) as web, pytest.raises(ConnectionError):
        web("POST", INFER, body)
    if before == "handling":
        assert memory.read(16, 64) == bytes(16)
    else:
        wait_until(lambda: memory.read(16, 64) == Y)
    wait_until(lambda: not fake.state().in_use)


def test_a_black_hole(fake, rpc, web):
    """Whatever is asked, over old connections and new ones, nothing is answered."""
    fake.inject(Fault("*", hold=True, calls=None))
    with Grpc(fake.grpc_url) as other:
        calls = [each.begin("ServerLive") for each in (rpc, other)]
        web.send("GET", "/v2/health/live")
        wait_until(lambda: fake.state().held == 3)
        assert not any(call.done() for call in calls)
        fake.clear()
        assert all(call.result().live for call in calls)
    assert web.receive()[0] == 200


def test_a_frozen_server(fake, rpc):
    fake.freeze()
    try:
        with Grpc(fake.grpc_url) as other:
            assert other.begin("ServerLive", deadline=0.2).refusal()[0] == "DEADLINE_EXCEEDED"
    finally:
        fake.thaw()
    assert rpc("ServerLive").live


# Ends


def test_crashes(leaves_nothing):
    """At once, or at a point of a call; each is an end without a word."""
    with FakeTriton({"fixed": MODELS["fixed"]}) as server, Memory() as memory:
        for before, written in ((None, False), ("writing", False), ("answering", True)):
            with Grpc(server.grpc_url) as rpc:
                memory.write(bytes(128))
                rpc.register("r", memory)
                if before is None:
                    server.crash()
                else:
                    server.inject(Fault("ModelInfer", before=before, crash=True))
                    assert place(rpc, memory, "r").refusal()[0] == "UNAVAILABLE"
                wait_until(lambda: not server.is_running)
                assert memory.read(16, 64) == (Y if written else bytes(16))
                ended = os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
                assert ended.si_status == CRASHED
            with pytest.raises(ServerError, match=r"does not run.*restart\(\) it"):
                server.state()
            server.restart()
            assert server.state().calls == {}
            with Grpc(server.grpc_url) as rpc:
                assert infer(rpc) == [Y]


# Answers that are not so


def garbled(fake, rpc, kind, model="fixed", name="OUTPUT0", inputs=None):
    fake.inject(Fault("ModelInfer", garble=kind))
    answer = rpc.infer(model, inputs or [tensor(data=X)])
    return [
        (entry.name, entry.datatype, list(entry.shape), data)
        for entry, data in zip(answer.outputs, answer.raw_output_contents, strict=True)
    ]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("shape_too_large", [("OUTPUT0", "FP32", [4000], Y)]),
        ("shape_too_small", [("OUTPUT0", "FP32", [3], Y)]),
        ("shape_overflows", [("OUTPUT0", "FP32", [2**62], Y)]),
        ("negative_dimension", [("OUTPUT0", "FP32", [-1], Y)]),
        ("wrong_datatype", [("OUTPUT0", "UINT32", [4], Y)]),
        ("unknown_datatype", [("OUTPUT0", "FP4", [4], Y)]),
        ("missing_output", []),
        ("no_outputs", []),
        (
            "extra_output",
            [("OUTPUT0", "FP32", [4], Y), ("SURPRISE", "FP32", [1], bytes(4))],
        ),
        ("repeated_output", [("OUTPUT0", "FP32", [4], Y)] * 2),
        ("data_too_short", [("OUTPUT0", "FP32", [4], Y[:-1])]),
        ("data_too_long", [("OUTPUT0", "FP32", [4], Y + b"\0")]),
    ],
)
def test_garbage(fake, rpc, kind, expected):
    assert garbled(fake, rpc, kind) == expected
    assert infer(rpc) == [Y], "the next one is as it should be"


def test_one_of_several_outputs_is_missing(fake, rpc):
    rows = tensor(shape=(1, 3), data=floats(1, 1, 1))
    found = garbled(fake, rpc, "missing_output", "rows", inputs=[rows])
    assert [name for name, _, _, _ in found] == ["OUTPUT0"]


def test_strings_past_the_end(fake, rpc, memory, region):
    """In the message, and in shared memory."""
    text = tensor("TEXT", "BYTES", (2, 1), data=strings(b"a", b"b"))
    broken = strings(b"AA", b"BB")[:6] + (2**31 - 1).to_bytes(4, "little") + b"BB"
    ((_, _, _, data),) = garbled(fake, rpc, "strings_past_the_end", "shout", inputs=[text])
    assert data == broken
    fake.inject(Fault("ModelInfer", garble="strings_past_the_end"))
    rpc.infer("shout", [text], [output("LOUD", at=(region, 100, 8))])
    assert memory.read(12, 8) == broken


def test_all_kinds_of_garbage_are_tested():
    names = set(typing.get_args(Garbage))
    (cases,) = (mark.args[1] for mark in test_garbage.pytestmark if mark.name == "parametrize")
    assert names == {kind for kind, _ in cases} | {"strings_past_the_end"}


def test_garbage_over_http(fake, web):
    fake.inject(Fault("ModelInfer", garble="shape_too_large"))
    _, _, body = web("POST", INFER, {"inputs": [JSON_IN]})
    assert b'"shape":[4000],"data":[2.0,3.0,4.0,5.0]' in body


def test_other_bodies(fake, rpc, web):
    answer = pb.ModelInferResponse(model_name="somebody else")
    fake.inject(Fault("ModelInfer", body=answer.SerializeToString()))
    assert rpc.infer(inputs=[tensor(data=X)]) == answer
    fake.inject(Fault("ModelInfer", body=b"\xff\xff"))
    assert rpc.infer_refusal(inputs=[tensor(data=X)])[0] == "INTERNAL"
    fake.inject(Fault("ModelInfer", body=b"{no json"), Fault("ServerMetadata", body=b""))
    assert web("POST", INFER, {"inputs": [JSON_IN]})[2] == b"{no json"
    assert web("GET", "/v2")[::2] == (200, b"")


def test_streams_are_refused(fake, rpc):
    """And nothing else, unless a fault comes before."""
    text = "FakeTriton does not play ModelStreamInfer"
    assert rpc.stream_refusal() == ("UNIMPLEMENTED", text)
    fake.inject(Fault("ModelStreamInfer", fail=("INTERNAL", "no")))
    assert rpc.stream_refusal() == ("INTERNAL", "no")
    fake.inject(Fault("ModelStreamInfer", drop=True))
    assert rpc.stream_refusal()[0] == "UNAVAILABLE"


# Shared memory


def test_a_region_that_somebody_else_unregistered(fake, rpc, memory, region):
    fake.forget(region)
    assert not rpc.is_registered(region)
    refusal = place(rpc, memory, region).refusal()
    assert refusal == ("NOT_FOUND", f"Unable to find shared memory region: '{region}'")
    rpc.register(region, memory)


def test_a_region_in_use_that_is_forgotten_is_used_to_the_end(fake, rpc, memory, region):
    mapped = fake.state().mapped
    fake.inject(Fault("ModelInfer", before="running", hold=True))
    call = place(rpc, memory, region)
    wait_until(lambda: fake.state().held == 1)
    fake.forget()
    assert not fake.state().registered
    assert fake.state().mapped == mapped
    fake.release()
    call.result()
    assert memory.read(16, 64) == Y
    assert fake.state().mapped == mapped - 1


def test_registering_that_is_forbidden_from_now_on(fake, rpc, memory, region):
    fake.set_client_shm(allowed=False)
    try:
        code, _ = rpc.refusal("SystemSharedMemoryRegister", name="x", key=memory.key, byte_size=8)
        assert code == "UNIMPLEMENTED"
        assert place(rpc, memory, region).result().raw_output_contents == [b""]
    finally:
        fake.set_client_shm(allowed=True)


def test_what_is_mapped_is_counted_by_the_kernel(fake, rpc, memory):
    before = fake.state().mapped
    rpc.register("r", memory)
    assert fake.state().mapped == before + 1
    rpc.unregister("r")
    assert fake.state().mapped == before


# Faults that are none


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "Infer", "drop": True}, "'Infer' is no call"),
        ({"method": "ModelInfer"}, "does nothing"),
        ({"method": "ModelInfer", "before": "lunch", "drop": True}, "'lunch' is no point"),
        ({"method": "ServerLive", "before": "writing", "drop": True}, "Only ModelInfer comes by"),
        ({"method": "ServerLive", "garble": "no_outputs"}, "Only ModelInfer"),
        ({"method": "ModelInfer", "garble": "mess"}, "'mess' is unknown"),
        ({"method": "ModelInfer", "fail": ("BAD", "")}, "'BAD' is no status code"),
        ({"method": "ModelInfer", "hold": True, "goes_on": True}, "can go on"),
        ({"method": "ModelInfer", "fail": ("INTERNAL", ""), "goes_on": True}, "can go on"),
        (
            {"method": "ModelInfer", "drop": True, "fail": ("INTERNAL", "")},
            "leave out drop or fail",
        ),
    ],
)
def test_faults_that_befall_nothing(values, message):
    with pytest.raises(ValueError, match=message):
        Fault(**values)


def test_a_fault_travels_as_it_is():
    fault = Fault("ModelInfer", skip=3, calls=None, fail=("INTERNAL", "ü"), body=b"\0\xff")
    assert Fault.from_json(json.loads(json.dumps(fault.to_json()))) == fault
