"""BYTES: framing, strings in and out, and what untrusted lengths do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import needs_strings

import triton_zerocopy as tz
from triton_zerocopy._datatypes import decode_bytes, encode_bytes


@needs_strings
@pytest.mark.anyio
@pytest.mark.parametrize("memory", ["system", "wire"])
async def test_strings_in_and_out(server, memory):
    texts = np.array([["abc"], ["ünïcode"], [""], ["x" * 1000]], dtype=object)
    expected = [text.encode().upper() * 2 for text in texts.ravel()]
    async with tz.Client(server.grpc_url, memory=memory) as client:
        async with client.model("shout") as model:
            for value in (
                texts,
                [[text] for text in texts.ravel().tolist()],
                np.array([[text.encode()] for text in texts.ravel()], dtype=object),
                np.array([[text] for text in texts.ravel()]),  # dtype U
                np.array([[text.encode()] for text in texts.ravel()]),  # dtype S
            ):
                result = await model.infer({"TEXT": value})
                assert result["LOUD"].dtype == object
                assert result["LOUD"].ravel().tolist() == expected
            one = await model.infer({"TEXT": "hello"})
            assert one["LOUD"].tolist() == [[b"HELLOHELLO"]]


@needs_strings
@pytest.mark.anyio
async def test_strings_of_a_split_batch(server):
    texts = [[f"row {index}"] for index in range(11)]
    async with tz.Client(server.grpc_url) as client, client.model("shout_rows") as model:
        for _ in range(2):
            result = await model.infer({"TEXT": texts})
            assert result["LOUD"].ravel().tolist() == [t[0].encode().upper() * 2 for t in texts]


@needs_strings
@pytest.mark.anyio
async def test_many_strings_are_framed_off_the_loop(server):
    texts = np.array([f"text {index}" for index in range(20_000)], dtype=object).reshape(-1, 1)
    async with tz.Client(server.grpc_url) as client, client.model("shout") as model:
        for _ in range(2):
            result = await model.infer({"TEXT": texts})
            assert result["LOUD"][19_999, 0] == b"TEXT 19999TEXT 19999"
        async with model.lease() as lease:
            result = await lease.infer({"TEXT": texts})
            assert result["LOUD"][19_999, 0] == b"TEXT 19999TEXT 19999"
        direct = await client.infer("shout", {"TEXT": texts})
        assert direct["LOUD"][19_999, 0] == b"TEXT 19999TEXT 19999"


@needs_strings
@pytest.mark.anyio
async def test_things_that_are_no_strings(server):
    async with tz.Client(server.grpc_url) as client, client.model("shout") as model:
        for value in ([[1]], np.array([[1]]), np.array([[None]], dtype=object), [["a"], [3]]):
            with pytest.raises(tz.InputError, match="TEXT"):
                await model.infer({"TEXT": value})


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_framing_round_trip(elements):
    array = np.array([*elements, None], dtype=object)[:-1]
    data = encode_bytes(array)
    decoded, used = decode_bytes(data, array.shape, exact=True)
    assert decoded.tolist() == elements
    assert used == len(data)


@given(st.binary(max_size=60), st.integers(0, 8))
def test_untrusted_lengths_never_read_past_the_end(data, count):
    try:
        decoded, used = decode_bytes(data, (count,), exact=False)
    except tz.InferenceError:
        return
    assert used <= len(data)
    assert sum(len(element) + 4 for element in decoded) == used


@needs_strings
@pytest.mark.anyio
@pytest.mark.parametrize("memory", ["system", "wire"])
async def test_longer_strings_in_the_same_shape(server, memory):
    async with (
        tz.Client(server.grpc_url, memory=memory) as client,
        client.model("shout", output_bytes={"LOUD": 1 << 18}) as model,
    ):
        for length in (1, 500, 2, 100_000, 3):
            result = await model.infer({"TEXT": [["a" * length]]})
            assert result["LOUD"].tolist() == [[b"A" * 2 * length]]
