"""Bad input is refused before anything is sent, by an error that tells both sides."""

from __future__ import annotations

import numpy as np
import pytest
from support import needs_strings

import triton_zerocopy as tz

pytestmark = pytest.mark.anyio

X = np.arange(4, dtype=np.float32)


@pytest.fixture(params=["system", "wire"])
def memory(request):
    return request.param


CASES = [
    ({}, "model 'fixed': missing input 'INPUT0'"),
    ({"NOPE": X}, "unknown input 'NOPE', missing input 'INPUT0'"),
    ({"INPUT0": X, "NOPE": X}, "unknown input 'NOPE'"),
    ({"INPUT0": X[:3]}, r"expected shape \[4\] .* got \[3\]"),
    ({"INPUT0": X.reshape(2, 2)}, r"expected shape \[4\] .* got \[2, 2\]"),
    ({"INPUT0": X[:1]}, r"got \[1\]"),  # would broadcast
    ({"INPUT0": np.float32(1)}, r"got \[\]"),
    ({"INPUT0": X.astype(np.float64)}, r"expected FP32 \(float32\), got FP64 \(float64\)"),
    ({"INPUT0": X.astype(np.int32)}, "got INT32"),
    ({"INPUT0": X.astype(np.float16)}, "got FP16"),
    ({"INPUT0": X.astype(complex)}, "complex128"),
    ({"INPUT0": X.astype(object)}, "got BYTES"),
    ({"INPUT0": np.array(["1", "2", "3", "4"])}, "got BYTES"),
    ({"INPUT0": X.view("V4")}, "an array"),
    ({"INPUT0": ["1", "2", "3", "4"]}, "numpy reads as <U1"),
    ({"INPUT0": "1234"}, "numpy reads as"),
    ({"INPUT0": [1, 2, 3, True]}, None),  # True is 1 among integers
    ({"INPUT0": [True] * 4}, "numpy reads as bool"),
    ({"INPUT0": [1e300, 0, 0, 0]}, "1e.300 is not representable in FP32"),
    ({"INPUT0": [2**24 + 1, 0, 0, 0]}, "16777217 is not representable in FP32"),
    ({"INPUT0": [2**100, 0, 0, 0]}, "object"),
    ({"INPUT0": [[1, 2], [3]]}, "lists of different lengths"),
    ({"INPUT0": [1, None, 2, 3]}, "object"),
    ({"INPUT0": [1, 2, 3, 4j]}, "complex"),
    ({"INPUT0": 5.0}, r"got \[\]"),
    ({"INPUT0": None}, "cannot use a NoneType"),
    ({"INPUT0": object()}, "cannot use a object"),
    ({"INPUT0": iter([1, 2])}, "cannot use a list_iterator"),
    ({"INPUT0": [X, X]}, r"INPUT0"),
    ({"INPUT0": []}, r"got \[0\]"),
    ([X], "inputs is a mapping"),
]


@pytest.mark.parametrize(("inputs", "text"), CASES)
async def test_inputs(server, memory, inputs, text):
    async with tz.Client(server.grpc_url, memory=memory) as client:
        async with client.model("fixed") as model:
            if text is None:
                await model.infer(inputs)
                return
            with pytest.raises(tz.InputError, match=text) as raised:
                await model.infer(inputs)
            assert isinstance(raised.value, ValueError)
            assert "fixed" in str(raised.value)
            assert client.statistics().bytes_reserved == 0, "nothing was touched"
            result = await model.infer({"INPUT0": X})
            np.testing.assert_array_equal(result["OUTPUT0"], X + 1)


async def test_batches(server, memory):
    rows = [np.zeros(3, np.float32), np.zeros(3, np.float32)]
    async with tz.Client(server.grpc_url, memory=memory) as client:
        async with client.model("rows") as model:
            for value, text in [
                (np.zeros((0, 3), np.float32), "at least one row, got 0"),
                (np.zeros(3, np.float32), r"expected shape \[-1, 3\]"),
                ([rows[0], np.zeros(2, np.float32)], r"got \[2\] in row 1"),
                ([rows[0], rows[0].astype(np.float64)], "float64 in row 1"),
                ([rows[0], [1, 2, 3]], "row 1 is a list among arrays"),
            ]:
                with pytest.raises(tz.InputError, match=text):
                    await model.infer({"INPUT0": value})
            await model.infer({"INPUT0": rows})


async def test_rows_must_agree(server):
    from triton_zerocopy._specs import ModelSpec, TensorSpec

    spec = ModelSpec.make(
        "m",
        "",
        [TensorSpec("A", "FP32", (-1, 2)), TensorSpec("B", "FP32", (-1, 2))],
        [],
        max_batch_size=8,
    )
    assert spec.rows_of({"A": (3, 2), "B": (3, 2)}) == 3
    with pytest.raises(tz.InputError, match="same number of rows"):
        spec.rows_of({"A": (3, 2), "B": (1, 2)})


async def test_options(server):
    async with tz.Client(server.grpc_url) as client, client.model("fixed") as model:
        for options, text in [
            ({"timeout": -1}, "timeout"),
            ({"timeout": "1"}, "timeout"),
            ({"timeout": float("nan")}, "timeout"),
            ({"queue_timeout": 0}, "queue_timeout"),
            ({"queue_timeout": -3.0}, "timeout"),
            ({"priority": -1}, "priority"),
            ({"priority": 1.5}, "priority"),
            ({"request_id": 7}, "request_id"),
            ({"parameters": {"sequence_id": 1}}, "reserved"),
            ({"parameters": {"triton_x": 1}}, "reserved"),
            ({"parameters": {"x": None}}, "str, bool, int or float"),
            ({"parameters": {"x": 2**63}}, "64 bits"),
            ({"parameters": {1: "x"}}, "name"),
            ({"outputs": []}, "at least one output"),
            ({"outputs": ["NOPE"]}, "unknown output 'NOPE'"),
            ({"outputs": ["OUTPUT0", "OUTPUT0"]}, "none twice"),
            ({"outputs": "OUTPUT0"}, "sequence of names"),
        ]:
            with pytest.raises(tz.InputError, match=text):
                await model.infer({"INPUT0": X}, **options)
        await model.infer({"INPUT0": X}, timeout=float("inf"))
        await model.infer({"INPUT0": X}, timeout=None)


async def test_leases(server):
    async with tz.Client(server.grpc_url) as client, client.model("fixed") as model:
        for shapes, text in [
            ({"NOPE": (4,)}, "unknown input 'NOPE'"),
            ({"INPUT0": (5,)}, r"expected shape \[4\]"),
            ({"INPUT0": (-1,)}, "expected shape"),
        ]:
            with pytest.raises(tz.InputError, match=text):
                model.lease(shapes)
        async with model.lease() as lease:
            for options, text in [
                ({"inputs": {"NOPE": X}}, "unknown input"),
                ({"inputs": {"INPUT0": X[:2]}}, "expected shape"),
                ({"inputs": {"INPUT0": X.astype(int)}}, "expected FP32"),
                ({"outputs": ["NOPE"]}, "unknown output"),
            ]:
                with pytest.raises(tz.InputError, match=text):
                    await lease.infer(**options)
            lease.inputs["INPUT0"][:] = X
            np.testing.assert_array_equal((await lease.infer())["OUTPUT0"], X + 1)
        rows = await client.model("rows")
        with pytest.raises(tz.InputError, match="at most 4 rows"):
            rows.lease({"INPUT0": (5, 3)})


@needs_strings
async def test_strings_cannot_be_leased(server):
    async with tz.Client(server.grpc_url) as client:
        strings = await client.model("shout")
        with pytest.raises(tz.InputError, match="BYTES"):
            strings.lease({"TEXT": (1, 1)})


async def test_models(server):
    async with tz.Client(server.grpc_url) as client:
        with pytest.raises(tz.InferenceError, match="unknown model") as raised:
            await client.model("no_such_model")
        assert raised.value.model == "no_such_model"
        with pytest.raises(tz.InferenceError):
            await client.model("fixed", "99")
        with pytest.raises(tz.InputError, match="decoupled"):
            await client.model("stream")
        for options in ({"slots": 0}, {"max_waiting": -1}, {"timeout": -1}, {"memory": "gpu"}):
            with pytest.raises(tz.InputError):
                client.model("fixed", **options)
        for memory in ("cuda", "cuda:", "cuda:-1", "cuda:01", "cuda:x", "cuda:0 ", "CUDA:0"):
            with pytest.raises(tz.InputError, match="'cuda:0', 'cuda:1'"):
                client.model("fixed", memory=memory)
        with pytest.raises(tz.InputError, match="unknown input"):
            await client.model("fixed", shapes={"NOPE": (4,)})
        assert client.statistics().models == 0


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "localhost:99999",
        "localhost:x",
        "http://localhost",
        "https://",
        "http://localhost:8000/v2",
        "http+unix:",
        "http://h\u00f6st:1",
        "ftp://a:1",
        "a b:1",
        "grpc://localhost:8001/path",
        "unix:",
        "host:0",
        None,
    ],
)
def test_urls(url):
    with pytest.raises(tz.InputError):
        tz.Client(url)


def test_a_url_with_a_password_does_not_repeat_it():
    with pytest.raises(tz.InputError) as raised:
        tz.Client("grpc://user:secret@localhost:8001")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [
        {"memory": "disk"},
        {"timeout": -1},
        {"max_shm_bytes": -1},
        {"shm_mode": 0o1777},
        {"shm_mode": 0o060},
        {"headers": {"": "x"}},
        {"headers": {"x": "a\nb"}},
        {"headers": {"x": 1}},
        {"url": "grpcs://localhost:1", "ssl": False},
        {"url": "https://localhost:1", "ssl": False},
    ],
)
def test_client_arguments(options):
    with pytest.raises(tz.InputError):
        tz.Client(**options)


def test_a_header_value_is_never_repeated():
    with pytest.raises(tz.InputError) as raised:
        tz.Client(headers={"authorization": "secret\n"})
    assert "secret" not in str(raised.value)
    client = tz.Client(
        headers={"authorization": "secret"}, ssl=tz.SslOptions(private_key=b"secret")
    )
    assert "secret" not in repr(client)
    assert "secret" not in repr(client._runtime.settings)
    assert "secret" not in repr(client._runtime.settings.ssl)
