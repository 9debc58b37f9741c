"""Calls that found no server are sent again if the client was told to."""

from __future__ import annotations

import asyncio
import itertools

import grpc
import numpy as np
import pytest
from models import MODELS
from support import until

import triton_zerocopy as tz
from triton_zerocopy.testing import FakeTriton, Fault, PythonModel

pytestmark = pytest.mark.anyio

X = np.arange(4, dtype=np.float32)
AGAIN = tz.RetryPolicy(first_pause=0.01, longest_pause=0.05)
AWAY = ("UNAVAILABLE", "failed to connect to all addresses")
BROKE = ("UNAVAILABLE", "Socket closed")


def one_more(INPUT0):
    return INPUT0 + 1


@pytest.fixture(params=["system", "wire"])
def memory(request):
    return request.param


async def call(client, model, way):
    if way == "infer":
        return (await model.infer({"INPUT0": X}))["OUTPUT0"]
    if way == "client":
        return (await client.infer("fixed", {"INPUT0": X}))["OUTPUT0"]
    async with model.lease() as lease:
        lease.inputs["INPUT0"][:] = X
        return (await lease.infer())["OUTPUT0"].copy()


@pytest.mark.parametrize("way", ["infer", "lease", "client"])
async def test_a_call_that_did_not_reach_the_server(fake, memory, way):
    fault = Fault("ModelInfer", fail=AWAY, calls=3)
    async with tz.Client(fake.grpc_url, memory=memory, retry=AGAIN) as client:
        async with client.model("fixed", slots=1) as model:
            await fake.ainject(fault)
            np.testing.assert_array_equal(await call(client, model, way), X + 1)
    async with tz.Client(fake.grpc_url, memory=memory) as client:
        async with client.model("fixed", slots=1) as model:
            await fake.ainject(fault)
            with pytest.raises(tz.ServerUnavailable):
                await call(client, model, way)
            await fake.aclear()


@pytest.mark.parametrize("way", ["infer", "lease", "client"])
async def test_the_server_is_away_when_a_lost_region_is_to_be_made_known(fake, way):
    async with tz.Client(fake.grpc_url, retry=AGAIN) as client:
        async with client.model("fixed", slots=1) as model, client.region(64) as region:
            inputs = {"INPUT0": region.tensor([4], "FP32")}
            await region.write(X)
            await call(client, model, way)
            await fake.aforget()
            await fake.ainject(Fault("SystemSharedMemoryStatus", fail=AWAY, calls=2))
            if way == "client":
                result = await client.infer("fixed", inputs)
                np.testing.assert_array_equal(result["OUTPUT0"], X + 1)
            else:
                np.testing.assert_array_equal(await call(client, model, way), X + 1)


@pytest.mark.parametrize("way", ["infer", "client"])
async def test_only_so_often(fake, way):
    retry = tz.RetryPolicy(attempts=2, first_pause=0, longest_pause=0)
    async with tz.Client(fake.grpc_url, retry=retry) as client, client.model("fixed") as model:
        await fake.ainject(Fault("ModelInfer", fail=AWAY, calls=3))
        with pytest.raises(tz.ServerUnavailable):
            await call(client, model, way)
        await call(client, model, way)


async def test_the_timeout_bounds_it(fake):
    async with tz.Client(fake.grpc_url, retry=AGAIN) as client:
        async with client.model("fixed", slots=1) as model:
            await fake.ainject(Fault("ModelInfer", fail=AWAY, calls=10_000))
            with pytest.raises(tz.InferTimeout):
                await model.infer({"INPUT0": X}, timeout=0.3)
            await until(lambda: model.statistics().available == 1)
            await fake.aclear()
            await call(client, model, "infer")


@pytest.mark.parametrize("is_repeatable", [False, True])
async def test_a_call_that_may_have_run(fake, memory, is_repeatable):
    """Only a model that may run twice gets it again, in memory that nobody writes to."""
    async with tz.Client(fake.grpc_url, memory=memory, retry=AGAIN) as client:
        async with client.model("fixed", slots=1, repeatable=is_repeatable) as model:
            await call(client, model, "infer")
            before = (await fake.astate()).registered
            await fake.ainject(Fault("ModelInfer", before="writing", fail=BROKE))
            if is_repeatable:
                np.testing.assert_array_equal(await call(client, model, "infer"), X + 1)
                after = (await fake.astate()).registered
                assert memory == "wire" or set(before).isdisjoint(after)
            else:
                with pytest.raises(tz.ServerUnavailable):
                    await call(client, model, "infer")
            await until(lambda: model.statistics().available == 1)


async def test_a_lease_stays_in_its_memory(fake):
    async with tz.Client(fake.grpc_url, retry=AGAIN) as client:
        async with client.model("fixed", slots=1, repeatable=True) as model:
            await fake.ainject(Fault("ModelInfer", before="writing", fail=BROKE))
            with pytest.raises(tz.ServerUnavailable):
                await call(client, model, "lease")
            await call(client, model, "lease")


async def test_a_sequence_is_never_repeated():
    """The order of its requests means something to the model."""
    model = PythonModel(
        one_more,
        inputs={"INPUT0": ("FP32", [4])},
        outputs={"OUTPUT0": ("FP32", [4])},
        config="sequence_batching { max_sequence_idle_microseconds: 5000000 }",
    )
    async with FakeTriton({"fixed": model}) as server:
        async with tz.Client(server.grpc_url, retry=AGAIN) as client:
            async with client.model("fixed") as model:
                await server.ainject(Fault("ModelInfer", fail=AWAY))
                with pytest.raises(tz.ServerUnavailable):
                    await call(client, model, "infer")


async def test_a_refusal_is_no_absence(fake):
    """The header is missing, and will be."""
    async with tz.Client(fake.grpc_url, retry=AGAIN) as client, client.model("fixed") as model:
        text = "This protocol is restricted, expecting header 'x'"
        await fake.ainject(Fault("ModelInfer", fail=("UNAVAILABLE", text)))
        with pytest.raises(tz.ServerUnavailable, match="restricted"):
            await call(client, model, "infer")


@pytest.mark.parametrize("way", ["infer", "lease"])
async def test_a_restart_is_waited_for(memory, way):
    async with FakeTriton({"fixed": MODELS["fixed"]}) as server:
        async with tz.Client(server.grpc_url, memory=memory, retry=AGAIN) as client:
            async with client.model("fixed", slots=2) as model:
                await call(client, model, way)
                await server.acrash()
                # Else a call may be cut off, instead of not sent.
                channel = client._runtime.transport._channel
                await until(lambda: channel.get_state() is not grpc.ChannelConnectivity.READY)
                calls = [asyncio.create_task(call(client, model, way)) for _ in range(4)]
                await asyncio.sleep(0)
                await server.arestart()
                for each in calls:
                    np.testing.assert_array_equal(await each, X + 1)
                assert model.statistics().available == 2


def test_pauses():
    policy = tz.RetryPolicy(first_pause=0.1, longest_pause=0.5)
    for count, longest in [(0, 0.1), (1, 0.2), (2, 0.4), (3, 0.5), (5000, 0.5)]:
        pauses = [policy.pause(count) for _ in range(200)]
        assert 0 <= min(pauses) < 0.5 * longest < max(pauses) <= longest
    assert all(map(policy.allows, itertools.islice(itertools.count(), 50)))


@pytest.mark.parametrize(
    "wrong",
    [{"attempts": -1}, {"attempts": 1.5}, {"first_pause": -1}, {"longest_pause": "1"}],
)
def test_what_is_no_policy(wrong):
    with pytest.raises(tz.InputError):
        tz.RetryPolicy(**wrong)
    with pytest.raises(tz.InputError, match="retry is a RetryPolicy"):
        tz.Client(retry=3)
