"""Outputs whose size the metadata does not tell."""

from __future__ import annotations

import numpy as np
import pytest

import triton_zerocopy as tz
from triton_zerocopy._output_sizes import OutputSizes


def runs(result):
    return int(result["RUNS"][0])


@pytest.mark.anyio
async def test_inline_first_then_shared_memory(server):
    async with tz.Client(server.grpc_url) as client, client.model("add_one") as model:
        x = np.arange(1000, dtype=np.float32)
        await model.infer({"INPUT0": x})
        before = client.statistics().bytes_reserved
        await model.infer({"INPUT0": x})
        assert client.statistics().bytes_reserved > before, "the output has its room now"


@pytest.mark.anyio
async def test_shapes_that_grow_are_served_by_growing_slots(server):
    async with tz.Client(server.grpc_url) as client, client.model("add_one", slots=1) as model:
        for size in (1, 10, 1000, 100_000, 1000, 777, 1_000_000, 3):
            x = np.arange(size, dtype=np.float32)
            for _ in range(2):
                result = await model.infer({"INPUT0": x})
                np.testing.assert_array_equal(result["OUTPUT0"], x + 1)


@pytest.mark.anyio
async def test_an_output_that_outgrows_its_slot(server):
    """The model has run; the caller is told, and the next call has room."""
    async with tz.Client(server.grpc_url) as client, client.model("runs") as model:
        first = runs(await model.infer({"N": [3]}))
        with pytest.raises(tz.CapacityError, match="output 'OUTPUT0' needs 40000 bytes") as raised:
            await model.infer({"N": [10_000]})
        assert raised.value.needed == 40_000
        assert raised.value.model_ran
        assert model.statistics().available == 4
        result = await model.infer({"N": [10_000]})
        np.testing.assert_array_equal(result["OUTPUT0"], np.arange(10_000))
        assert runs(result) == first + 2


@pytest.mark.anyio
async def test_a_repeatable_model_runs_again(server):
    async with tz.Client(server.grpc_url) as client:
        async with client.model("runs", repeatable=True) as model:
            first = runs(await model.infer({"N": [3]}))
            result = await model.infer({"N": [10_000]})
            np.testing.assert_array_equal(result["OUTPUT0"], np.arange(10_000))
            assert runs(result) == first + 2


@pytest.mark.anyio
async def test_output_bytes_reserves_from_the_first_call(server):
    async with tz.Client(server.grpc_url) as client:
        async with client.model("count", output_bytes={"OUTPUT0": 400}) as model:
            await model.infer({"N": [100]})
            with pytest.raises(tz.CapacityError) as raised:
                await model.infer({"N": [101]})
            assert raised.value.needed == 404
            result = await model.infer({"N": [101]})
            assert result["OUTPUT0"].shape == (101,)
        with pytest.raises(tz.InputError, match="unknown output 'NOPE'"):
            await client.model("count", output_bytes={"NOPE": 1})


@pytest.mark.anyio
async def test_outgrown_in_a_lease(server):
    """A slot cannot grow under a lease: the output comes inline from then on."""
    async with tz.Client(server.grpc_url) as client:
        async with client.model("runs", output_bytes={"OUTPUT0": 40}) as model:
            async with model.lease() as lease:
                lease.inputs["N"][:] = 1000
                with pytest.raises(tz.CapacityError):
                    await lease.infer()
                result = await lease.infer()
                np.testing.assert_array_equal(result["OUTPUT0"], np.arange(1000))
                assert not result["OUTPUT0"].flags.writeable
        async with client.model("runs", output_bytes={"OUTPUT0": 40}, repeatable=True) as model:
            async with model.lease() as lease:
                lease.inputs["N"][:] = 1000
                result = await lease.infer()
                np.testing.assert_array_equal(result["OUTPUT0"], np.arange(1000))


@pytest.mark.anyio
async def test_an_output_without_elements(server):
    async with tz.Client(server.grpc_url) as client, client.model("count") as model:
        for _ in range(2):
            assert (await model.infer({"N": [0]}))["OUTPUT0"].shape == (0,)
        assert (await model.infer({"N": [5]}))["OUTPUT0"].shape == (5,)


def test_sizes_are_learned_for_rounded_shapes():
    sizes = OutputSizes({})
    assert sizes.room_for("A", [(100, 3)]) is None
    assert sizes.learn("A", [(100, 3)], 1200)
    room = sizes.room_for("A", [(128, 3)])
    assert room is not None
    assert room >= 1200 * 128 / 100, "an output that grows with its input still fits"
    assert sizes.room_for("A", [(129, 3)]) is None
    assert sizes.room_for("B", [(100, 3)]) is None
    assert not sizes.learn("A", [(100, 3)], 1100)
    assert sizes.learn("A", [(100, 3)], 10 * room)
    assert sizes.room_for("A", [(65, 3)]) >= 10 * room


def test_set_sizes_hold_for_all_shapes_until_outgrown():
    sizes = OutputSizes({"A": 100})
    assert sizes.room_for("A", [(7,)]) == 100
    assert not sizes.learn("A", [(7,)], 50)
    assert sizes.learn("A", [(7,)], 150)
    assert sizes.room_for("A", [(9,)]) == 150


def test_memory_of_sizes_is_bounded():
    sizes = OutputSizes({})
    for index in range(3000):
        sizes.learn(f"output {index}", [(1,)], 4)
    assert sizes.room_for("output 0", [(1,)]) is None
    assert sizes.room_for("output 2999", [(1,)]) == 4
