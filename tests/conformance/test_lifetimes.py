"""How long a server uses memory: after a cancel, in the queue, until it is unregistered."""

from __future__ import annotations

import secrets

import pytest

from .raw import (
    Gate,
    Grpc,
    Http,
    Memory,
    floats,
    in_use,
    output,
    placed,
    tensor,
    wait_until,
)

X = floats(1, 2)
DONE = [2.0, 3.0]


@pytest.fixture
def gate():
    with Gate() as gate:
        yield gate


@pytest.fixture
def slot(rpc, memory):
    """A region for one request, unregistered by the test or else afterwards."""
    name = f"s-{secrets.token_hex(8)}"
    rpc.register(name, memory)
    yield name
    rpc.unregister(name)


@pytest.fixture
def begin(rpc, slot, memory, gate):
    """Begin a request that reads and writes the slot, and wait until it is at the gate."""

    def begin(model="gate", **options):
        memory.write(X)
        call = rpc.begin_infer(
            model,
            [tensor(shape=(2,), at=(slot, 8, 0)), gate.input],
            [output(at=(slot, 8, 64))],
            **options,
        )
        gate.wait_until_reached()
        return call

    return begin


def test_a_region_in_use_is_not_unregistered(rpc, web, slot, memory, gate, begin):
    call = begin()
    assert rpc.refusal("SystemSharedMemoryUnregister", name=slot) == in_use(slot)
    path = f"/v2/systemsharedmemory/region/{slot}/unregister"
    assert web.refusal("POST", path) == (500, in_use(slot)[1])
    assert rpc.is_registered(slot)
    gate.open()
    assert call.result().raw_output_contents == [b""]
    assert memory.floats(2, 64) == DONE
    rpc.unregister(slot)
    assert not rpc.is_registered(slot)


def test_unregistering_all_leaves_those_in_use(rpc, slot, gate, begin):
    with Memory() as other:
        rpc.register("zz-idle", other)
        call = begin()
        assert rpc.refusal("SystemSharedMemoryUnregister", name="") == (
            "INTERNAL",
            f"Failed to unregister the following system shared memory regions: {slot} ,",
        )
        assert not rpc.is_registered("zz-idle")
        gate.open()
        call.result()


@pytest.mark.parametrize("way", ["cancel", "deadline", "connection"])
def test_a_request_that_was_given_up_writes_late(server, rpc, slot, memory, gate, way):
    """The client has its error long before, and the region stays in use until then."""
    memory.write(X)
    with Grpc(server.grpc_url) as other:
        inputs = [tensor(shape=(2,), at=(slot, 8, 0)), gate.input]
        outputs = [output(at=(slot, 8, 64))]
        deadline = 1.0 if way == "deadline" else None
        call = other.begin_infer("gate", inputs, outputs, deadline=deadline)
        gate.wait_until_reached()
        if way == "cancel":
            call.cancel()
        elif way == "connection":
            other.channel.close()
        expected = "DEADLINE_EXCEEDED" if way == "deadline" else "CANCELLED"
        assert call.refusal()[0] == expected
    for _ in range(3):
        assert not rpc.is_unregistered(slot)
    assert memory.floats(2, 64) == [0, 0]
    gate.open()
    wait_until(lambda: rpc.is_unregistered(slot))
    assert memory.floats(2, 64) == DONE, "it was unregistered after the late write"


def test_a_client_of_http_that_leaves_cancels_nothing(server, rpc, slot, memory, gate):
    memory.write(X)
    with Http(server.http_url) as leaving:
        inputs = [
            {"name": "INPUT0", "datatype": "FP32", "shape": [2], "parameters": placed(slot, 8)},
            {"name": "GATE", "datatype": "INT64", "shape": [1], "data": [gate.number]},
        ]
        outputs = [{"name": "OUTPUT0", "parameters": placed(slot, 8, 64)}]
        import json

        body = json.dumps({"inputs": inputs, "outputs": outputs})
        leaving.send("POST", "/v2/models/gate/infer", body)
        gate.wait_until_reached()
    assert not rpc.is_unregistered(slot)
    gate.open()
    wait_until(lambda: rpc.is_unregistered(slot))
    assert memory.floats(2, 64) == DONE


def begin_queued(rpc, gate, memory):
    """Queue a request behind one that is at a gate; its region is in use by then."""
    while True:
        name = f"q-{secrets.token_hex(8)}"
        rpc.register(name, memory)
        inputs = [tensor(shape=(2,), at=(name, 8, 0)), gate.input]
        call = rpc.begin_infer("gate", inputs, [output(at=(name, 8, 64))])
        if not rpc.is_unregistered(name):
            return name, call
        # The server had not looked at it yet.
        assert call.refusal()[0] == "NOT_FOUND"


def test_a_queued_request_uses_its_region_and_reads_it_late(rpc, slot, gate, begin):
    """What is in the slot when the model runs is what it gets."""
    first = begin()
    with Memory() as other, Gate() as second_gate:
        other.write(X)
        name, second = begin_queued(rpc, second_gate, other)
        other.write(floats(10, 20))
        gate.open()
        first.result()
        second_gate.wait_until_reached()
        other.write(floats(30, 40))
        second_gate.open()
        second.result()
        assert other.floats(2, 64) == [11, 21], "the python backend reads when it begins"
        rpc.unregister(name)


def test_a_queued_request_that_was_given_up_runs(rpc, slot, gate, begin):
    """Without dynamic batching nobody looks whether it was cancelled."""
    first = begin()
    with Memory() as other, Gate() as second_gate:
        other.write(X)
        name, second = begin_queued(rpc, second_gate, other)
        second.cancel()
        gate.open()
        first.result()
        second_gate.wait_until_reached()
        second_gate.open()
        rpc.unregister(name)
        assert other.floats(2, 64) == DONE


def test_each_tensor_refers_to_its_region(rpc, slot, memory, gate, begin):
    """Several requests at disjoint places of one region; the last one frees it."""
    call = begin()
    answers = [
        rpc.begin_infer(
            "fixed", [tensor(data=floats(i, i, i, i))], [output(at=(slot, 16, 128 + 16 * i))]
        )
        for i in range(20)
    ]
    for answer in answers:
        answer.result()
    assert memory.floats(80, 128) == [i + 1 for i in range(20) for _ in range(4)]
    assert not rpc.is_unregistered(slot)
    gate.open()
    call.result()
    rpc.unregister(slot)


def test_a_request_that_was_refused_uses_nothing(rpc, slot):
    wrong = tensor(shape=(3,), at=(slot, 12, 0))
    for _ in range(5):
        rpc.infer_refusal("fixed", [wrong], [output(at=(slot, 16, 64))])
        rpc.infer_refusal("fixed", [tensor(at=(slot, 16, 0))], [output(at=("nope", 16, 64))])
    rpc.unregister(slot)
    assert not rpc.is_registered(slot)
