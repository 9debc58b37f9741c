"""Infer requests over gRPC: where tensors are, what is answered, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from models import NUMERIC
from support import needs_strings

from .raw import PAGE, floats, infer_request, output, set_parameter, strings, tensor

X, Y = floats(0, 1, 2, 3), floats(1, 2, 3, 4)
ID = "[request id: <id_unknown>] "


# Answers


def test_an_inline_answer(rpc):
    answer = rpc.infer(inputs=[tensor(data=X)], request_id="q7")
    (entry,) = answer.outputs
    assert (answer.model_name, answer.model_version, answer.id) == ("fixed", "1", "q7")
    assert (entry.name, entry.datatype, list(entry.shape)) == ("OUTPUT0", "FP32", [4])
    assert not entry.parameters
    assert answer.raw_output_contents == [Y]


def test_an_output_in_shared_memory_has_an_empty_entry(rpc, region, memory):
    memory.write(X)
    answer = rpc.infer(inputs=[tensor(at=(region, 16, 0))], outputs=[output(at=(region, 100, 64))])
    (entry,) = answer.outputs
    assert (entry.name, entry.datatype, list(entry.shape)) == ("OUTPUT0", "FP32", [4])
    assert not entry.parameters
    assert answer.raw_output_contents == [b""]
    assert memory.read(100, 64) == Y + bytes(84), "the rest of the slot is untouched"


def test_inline_and_placed_tensors_mix(rpc, region, memory):
    """Only inputs that are not in shared memory take a raw entry; a surplus one is ignored."""
    a, b = (np.array(each, np.int32) for each in ([1, 2, 3, 4], [10, 20, 30, 40]))
    memory.write(b.tobytes(), 1024)
    inputs = [
        tensor("B", "INT32", at=(region, 16, 1024)),
        tensor("A", "INT32", data=a.tobytes()),
    ]
    outputs = [output("SUM"), output("DIFFERENCE", at=(region, 16, 3))]
    answer = rpc.infer("two", inputs, outputs, raw=[a.tobytes(), b"surplus"])
    assert [entry.name for entry in answer.outputs] == ["SUM", "DIFFERENCE"]
    assert answer.raw_output_contents == [(a + b).tobytes(), b""]
    assert memory.read(16, 3) == (a - b).tobytes(), "offsets need no alignment"


def test_input_and_output_may_be_the_same_place(rpc, region, memory):
    memory.write(X)
    rpc.infer(inputs=[tensor(at=(region, 16, 0))], outputs=[output(at=(region, 16, 0))])
    assert memory.read(16) == Y


def test_the_first_of_two_requests_for_an_output_counts(rpc, region, memory):
    outputs = [output(at=(region, 16, 0)), output(at=(region, 16, 64))]
    answer = rpc.infer(inputs=[tensor(data=X)], outputs=outputs)
    assert len(answer.outputs) == 1
    assert memory.read(80) == Y + bytes(64)


def test_only_requested_outputs_come(rpc):
    rows = tensor(shape=(2, 3), data=floats(1, 1, 1, 2, 2, 2))
    answer = rpc.infer("rows", [rows], [output("SUM")])
    assert [(entry.name, list(entry.shape)) for entry in answer.outputs] == [("SUM", [2, 1])]
    assert answer.raw_output_contents == [floats(3, 6)]
    assert [entry.name for entry in rpc.infer("rows", [rows]).outputs] == ["OUTPUT0", "SUM"]


def test_an_output_that_does_not_fit(rpc, region, memory):
    """The model has run, the outputs before that one are written, and it itself is not."""
    rows = tensor(shape=(2, 3), data=floats(1, 1, 1, 1, 1, 1))
    outputs = [output("OUTPUT0", at=(region, 24, 0)), output("SUM", at=(region, 4, 64))]
    assert rpc.infer_refusal("rows", [rows], outputs) == (
        "INTERNAL",
        (
            "shared memory size specified with the request for output 'SUM' (4 bytes) should be at"
            " least 8 bytes to hold the results"
        ),
    )
    assert memory.floats(6) == [2] * 6
    assert memory.read(16, 64) == bytes(16)
    outputs = [output("OUTPUT0", at=(region, 20, 128)), output("SUM", at=(region, 8, 256))]
    code, text = rpc.infer_refusal("rows", [rows], outputs)
    assert (code, "(20 bytes) should be at least 24 bytes" in text) == ("INTERNAL", True)
    assert memory.read(256, 128) == bytes(256)


def test_a_model_that_ran_for_nothing_has_run(rpc, region):
    def runs():
        n = tensor("N", "INT32", [1], data=np.array([3], np.int32).tobytes())
        answer = rpc.infer("runs", [n], [output("RUNS")])
        return np.frombuffer(answer.raw_output_contents[0], np.int32)[0]

    before = runs()
    n = tensor("N", "INT32", [1], data=np.array([3], np.int32).tobytes())
    code, _ = rpc.infer_refusal("runs", [n], [output("OUTPUT0", at=(region, 8, 0))])
    assert code == "INTERNAL"
    assert runs() == before + 2


def test_an_output_without_items_writes_nothing(rpc, region, memory):
    memory.write(bytes([7]) * 16)
    n = tensor("N", "INT32", [1], data=bytes(4))
    answer = rpc.infer("count", [n], [output(at=(region, 16, 0))])
    assert list(answer.outputs[0].shape) == [0]
    assert memory.read(16) == bytes([7]) * 16


def test_every_datatype_keeps_its_bytes(rpc, region, memory):
    rng = np.random.default_rng(5)
    inputs, outputs, expected = [], [], {}
    for index, name in enumerate(NUMERIC):
        size = 8 if "64" in name else 4 if "32" in name else 2 if "16" in name else 1
        data = rng.integers(0, 2 if name == "BOOL" else 60, 6 * size, np.uint8).tobytes()
        memory.write(data, 128 * index)
        inputs.append(tensor(name, name, (3, 2), at=(region, len(data), 128 * index)))
        place = (region, len(data), PAGE + 128 * index)
        outputs.append(output(f"OUT_{name}", at=place))
        expected[f"OUT_{name}"] = (name, data, place)
    answer = rpc.infer("echo", inputs, outputs)
    for entry in answer.outputs:
        datatype, data, (_, size, offset) = expected.pop(entry.name)
        assert (entry.datatype, list(entry.shape)) == (datatype, [3, 2])
        assert memory.read(size, offset) == data, datatype
    assert not expected


def test_explicit_contents(rpc):
    request = infer_request("fixed", [tensor()])
    request.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    assert rpc.send(request).raw_output_contents == [floats(2, 3, 4, 5)]
    request.raw_input_contents.append(X)
    with pytest.raises(Exception, match="contents field must not be specified when using raw_"):
        rpc.send(request)


def test_an_optional_input_may_be_left_out(rpc):
    a = tensor("A", data=X)
    assert rpc.infer("optional", [a]).raw_output_contents == [X]
    both = [a, tensor("B", data=floats(5, 5, 5, 5))]
    assert rpc.infer("optional", both).raw_output_contents == [floats(5, 6, 7, 8)]
    assert rpc.infer_refusal("optional") == (
        "INVALID_ARGUMENT",
        (
            f"{ID}expected number of inputs between 1 and 2 but got 0 inputs for model 'optional'. Got"
            " input(s) [], but missing required input(s) ['A']. Please provide all required input(s)."
        ),
    )


# Refusals


@pytest.mark.parametrize(
    ("byte_size", "offset", "text"),
    [
        (16, 2 * PAGE, "Invalid offset for shared memory region: '{}'"),
        (16, -1, "Invalid offset for shared memory region: '{}'"),
        (16, 2 * PAGE - 12, "Invalid offset + byte size for shared memory region: '{}'"),
        (-1, 0, "Invalid offset + byte size for shared memory region: '{}'"),
        (0, 0, "Invalid offset + byte size for shared memory region: '{}'"),
    ],
)
def test_places_outside_the_region(rpc, region, byte_size, offset, text):
    expected = ("INVALID_ARGUMENT", text.format(region))
    at = (region, byte_size, offset)
    assert rpc.infer_refusal(inputs=[tensor(at=at)]) == expected
    assert rpc.infer_refusal(inputs=[tensor(data=X)], outputs=[output(at=at)]) == expected


def test_the_last_byte_of_a_region_can_be_used(rpc, region, memory):
    rpc.infer(inputs=[tensor(data=X)], outputs=[output(at=(region, 16, 2 * PAGE - 16))])
    assert memory.read(16, 2 * PAGE - 16) == Y


MISMATCH = ID + "input byte size mismatch for input 'INPUT0' for model 'fixed'. Expected 16, got "


@pytest.mark.parametrize(
    ("byte_size", "offset", "got"),
    [(12, 0, "12"), (20, 0, "20"), (0, 16, "0"), (-1, 16, "18446744073709551615")],
)
def test_the_byte_size_of_an_input_is_exact(rpc, region, byte_size, offset, got):
    """That a size of 2^64 - 1 passes the bounds is a bug of this release."""
    at = (region, byte_size, offset)
    assert rpc.infer_refusal(inputs=[tensor(at=at)]) == ("INVALID_ARGUMENT", MISMATCH + got)


def test_no_items_at_offset_0_are_out_of_bounds(rpc, region):
    empty = tensor(shape=(0,), at=(region, 0, 0))
    assert rpc.infer_refusal("add_one", [empty])[1] == (
        f"Invalid offset + byte size for shared memory region: '{region}'"
    )
    elsewhere = tensor(shape=(0,), at=(region, 0, 16))
    assert list(rpc.infer("add_one", [elsewhere]).outputs[0].shape) == [0]
    assert list(rpc.infer("add_one", [tensor(shape=(0,), data=b"")]).outputs[0].shape) == [0]


def test_an_unknown_region(rpc):
    expected = ("NOT_FOUND", "Unable to find shared memory region: 'nope'")
    assert rpc.infer_refusal(inputs=[tensor(at=("nope", 16, 0))]) == expected
    assert (
        rpc.infer_refusal(inputs=[tensor(data=X)], outputs=[output(at=("nope", 16, 0))]) == expected
    )


SIZE, PLACE = "'shared_memory_byte_size'", "'shared_memory_region'"


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (
            {"shared_memory_region": "r"},
            f"{SIZE} must be specified along with {PLACE} parameter for tensor 'INPUT0'",
        ),
        (
            {"shared_memory_byte_size": 16},
            f"{SIZE} can not be specified without {PLACE} parameter for tensor 'INPUT0'",
        ),
        (
            {"shared_memory_offset": 16},
            (
                f"'shared_memory_offset' can not be specified without {PLACE} parameter for tensor"
                " 'INPUT0'"
            ),
        ),
        (
            {"shared_memory_region": 5, "shared_memory_byte_size": 16},
            f"invalid value type for {PLACE} parameter for tensor 'INPUT0', expected string_param.",
        ),
        (
            {"shared_memory_region": "r", "shared_memory_byte_size": "16"},
            f"invalid value type for {SIZE} parameter for tensor 'INPUT0', expected int64_param.",
        ),
    ],
)
def test_parameters_that_name_no_place(rpc, parameters, text):
    request = infer_request("fixed", [tensor()])
    for name, value in parameters.items():
        set_parameter(request.inputs[0].parameters[name], value)
    with pytest.raises(Exception) as raised:
        rpc.send(request)
    assert raised.value.answer == ("INVALID_ARGUMENT", text)


def test_contents_in_two_places(rpc, region):
    request = infer_request("fixed", [tensor(at=(region, 16, 0))])
    request.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    with pytest.raises(Exception, match="unexpected 'content' provided when using shared memory"):
        rpc.send(request)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (
            tensor(datatype="INT32", data=X),
            ID + "inference input 'INPUT0' data-type is 'INT32', but model 'fixed' expects 'FP32'",
        ),
        (
            tensor(datatype="FP33", data=X),
            ID + "inference input 'INPUT0' data-type is '<invalid>', but model 'fixed' expects"
            " 'FP32'",
        ),
        (
            tensor(shape=(2, 2), data=X),
            ID + "unexpected shape for input 'INPUT0' for model 'fixed'. Expected [4], got [2,2]. ",
        ),
        (
            tensor(shape=(-1,), data=X),
            ID + "All input dimensions should be specified for input 'INPUT0' for model 'fixed',"
            " got [-1]",
        ),
        (tensor("X", data=X), "unexpected inference input 'X' for model 'fixed'"),
        (tensor(data=X[:12]), MISMATCH + "12"),
        (tensor(), "unable to find data for input tensor 'INPUT0' for model 'fixed' in request."),
    ],
)
def test_inputs_that_do_not_fit_the_model(rpc, entry, text):
    assert rpc.infer_refusal(inputs=[entry]) == ("INVALID_ARGUMENT", text)


def test_inputs_and_outputs_by_name(rpc):
    one = tensor(data=X)
    assert rpc.infer_refusal(inputs=[one, one])[1] == (
        f"{ID}input 'INPUT0' already exists in request"
    )
    assert rpc.infer_refusal()[1] == (
        f"{ID}expected 1 inputs but got 0 inputs for model 'fixed'. Got input(s) [], but missing"
        " required input(s) ['INPUT0']. Please provide all required input(s)."
    )
    assert rpc.infer_refusal(inputs=[one], outputs=[output("NOPE")]) == (
        "INVALID_ARGUMENT",
        "unexpected inference output 'NOPE' for model 'fixed'",
    )
    assert rpc.infer_refusal(inputs=[tensor(data=X[:8])], request_id="me")[1].startswith(
        "[request id: me] input byte size mismatch"
    )


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((5, 3), "inference request batch-size must be <= 4 for 'rows'"),
        ((), "input 'INPUT0' has no shape but model requires batch dimension for 'rows'"),
        ((3,), "unexpected shape for input 'INPUT0' for model 'rows'. Expected [-1,3], got [3]. N"),
    ],
)
def test_batches_that_do_not_fit_the_model(rpc, shape, text):
    entry = tensor(shape=shape, data=bytes(60))
    code, got = rpc.infer_refusal("rows", [entry])
    assert (code, got[: len(ID + text)]) == ("INVALID_ARGUMENT", ID + text)


@pytest.mark.parametrize(
    ("model", "version", "code", "text"),
    [
        ("nope", "", "NOT_FOUND", "Request for unknown model: 'nope' is not found"),
        ("fixed", "9", "NOT_FOUND", "Request for unknown model: 'fixed' version 9 is not found"),
        (
            "fixed",
            "x",
            "INVALID_ARGUMENT",
            (
                "failed to get model version from specified version string 'x' (details: stol), version"
                " should be an integral value > 0"
            ),
        ),
        (
            "stream",
            "",
            "UNIMPLEMENTED",
            "ModelInfer RPC doesn't support models with decoupled transaction policy",
        ),
    ],
)
def test_models_that_cannot_be_asked(rpc, model, version, code, text):
    entry = tensor(data=X)
    assert rpc.infer_refusal(model, [entry], version=version) == (code, text)


def test_regions_are_looked_up_after_the_model_and_before_its_inputs(rpc):
    nowhere = tensor("X", "FP33", at=("nope", 16, 0))
    assert "unknown model" in rpc.infer_refusal("nope", [nowhere])[1]
    assert "Unable to find" in rpc.infer_refusal("fixed", [nowhere])[1]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("triton_x", 1, "parameter keys starting with 'triton_' are reserved for Triton usage."),
        ("timeout", "x", "invalid value type for 'timeout' parameter, expected int64_param."),
        ("priority", -1, "invalid value for 'priority', expected value >= 0."),
    ],
)
def test_parameters_of_the_request(rpc, name, value, text):
    request = infer_request("fixed", [tensor(data=X)])
    set_parameter(request.parameters[name], value)
    with pytest.raises(Exception) as raised:
        rpc.send(request)
    code, got = raised.value.answer
    assert (code, got[: len(text)]) == ("INVALID_ARGUMENT", text)


def test_a_model_that_fails(rpc):
    entry = tensor(data=X)
    assert rpc.infer_refusal("fail", [entry]) == (
        "INTERNAL",
        "ValueError: this model never works",
    )


# Strings


@needs_strings
def test_strings(rpc, region, memory):
    data = strings(b"abc", b"de")
    memory.write(data, 100)
    text = tensor("TEXT", "BYTES", (2, 1), at=(region, len(data), 100))
    rpc.infer("shout", [text], [output("LOUD", at=(region, 100, 1000))])
    assert memory.read(18, 1000) == strings(b"ABCABC", b"DEDE")
    _code, refusal = rpc.infer_refusal("shout", [text], [output("LOUD", at=(region, 10, 1000))])
    assert "(10 bytes) should be at least 18 bytes" in refusal


@needs_strings
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            strings(b"a", b"b", b"c"),
            ID + "unexpected number of string elements 3 for inference input 'TEXT' for model"
            " 'shout', expecting 2",
        ),
        (
            strings(b"a"),
            ID + "expected 2 string elements for inference input 'TEXT' for model 'shout', got 1",
        ),
        (
            strings(b"a", b"b") + b"xx",
            ID + "incomplete string length indicator for inference input 'TEXT' for model 'shout',"
            " expecting 4 bytes but only 2 bytes available. Please make sure the string length"
            " indicator is in one buffer.",
        ),
        (
            strings(b"a") + b"\xff\0\0\0",
            (
                "incomplete string data for inference input 'TEXT', expecting string of length 255 but"
                " only 0 bytes available"
            ),
        ),
    ],
)
def test_strings_that_are_none(rpc, region, memory, data, text):
    memory.write(data)
    inline = tensor("TEXT", "BYTES", (2, 1), data=data)
    placed = tensor("TEXT", "BYTES", (2, 1), at=(region, len(data), 0))
    for entry in (inline, placed):
        assert rpc.infer_refusal("shout", [entry]) == ("INVALID_ARGUMENT", text)
