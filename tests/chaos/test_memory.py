"""What is shared is taken away, or taken by somebody else, under load."""

from __future__ import annotations

import asyncio
import os

import pytest
from support import until

import triton_zerocopy as tz
from triton_zerocopy import _region_keeper
from triton_zerocopy._regions import system

pytestmark = pytest.mark.anyio


@pytest.fixture
async def vandal(unruly):
    """Another client of the server, as anybody may have one."""
    async with tz.Client(unruly.grpc_url) as other:
        yield other.triton


async def test_somebody_unregisters_everything(unruly, witness, load, vandal):
    """As many examples of Triton's own clients do when they start.

    A call that loses its region twice is told so; it never ran.
    """
    async with tz.Client(unruly.grpc_url) as client, client.model("work", slots=4) as model:
        load.start(model, tz.InferenceError)
        for _ in range(20):
            await load.some("ok", 5)
            try:
                await vandal.unregister_system_shared_memory()
            except Exception as error:
                assert "Failed to unregister" in str(error)  # those in use
        await load.stop()
        await load.at_peace(model)
    assert not load.ends["unavailable"]
    assert load.last_error is None or "Unable to find shared memory region" in load.last_error


async def test_somebody_unregisters_by_name(unruly, witness, load, vandal):
    async with tz.Client(unruly.grpc_url) as client, client.model("work", slots=4) as model:
        load.start(model, tz.InferenceError)
        for _ in range(60):
            await load.some("ok", 1)
            known = (await vandal.get_system_shared_memory_status()).regions
            for name in load.rng.sample(sorted(known), min(2, len(known))):
                try:
                    await vandal.unregister_system_shared_memory(name)
                except Exception as error:
                    assert "in use" in str(error)
        await load.stop()
        await load.at_peace(model)
    assert not load.ends["unavailable"]


async def test_a_name_that_somebody_else_has_registered(unruly, witness, load, vandal, monkeypatch):
    """Refused as it is no proof of anything; neither's memory is taken for the other's."""
    taken, other = "taken-by-another", f"/tzc-chaos-{os.getpid()}"
    with open(f"/dev/shm{other}", "wb") as file:
        file.write(b"\7" * 4096)
    try:
        await vandal.register_system_shared_memory(taken, other, 4096)
        real = system.new_name
        names = [taken]

        def new_name(owner):
            return names.pop() if names else real(owner)

        async with tz.Client(unruly.grpc_url) as client:
            async with client.model("work", slots=1) as model:
                monkeypatch.setattr(system, "new_name", new_name)
                monkeypatch.setattr(_region_keeper, "new_name", new_name)
                with pytest.raises(tz.RegistrationError, match="already in manager"):
                    await load.infer(model)
                await load.infer(model)
                # The same when it comes to renewing.
                await unregister_others(vandal, taken)
                names.append(taken)
                with pytest.raises(tz.RegistrationError, match="already in manager"):
                    await load.infer(model)
                await load.infer(model)
                await load.at_peace(model)
        assert set((await vandal.get_system_shared_memory_status()).regions) == {taken}
        with open(f"/dev/shm{other}", "rb") as file:
            assert file.read() == b"\7" * 4096
        await vandal.unregister_system_shared_memory(taken)
    finally:
        os.unlink(f"/dev/shm{other}")


async def unregister_others(vandal, name):
    for each in (await vandal.get_system_shared_memory_status()).regions:
        if each != name:
            await vandal.unregister_system_shared_memory(each)


async def test_a_stale_name_is_used_by_somebody_else(unruly, witness, load, vandal):
    """After a loss the region gets a name that nobody had: the old one may be another's by then."""
    path = f"/tzc-chaos-{os.getpid()}"
    with open(f"/dev/shm{path}", "wb") as file:
        file.write(b"\7" * 4096)
    stale = set()
    try:
        async with tz.Client(unruly.grpc_url) as client, client.model("work", slots=1) as model:
            for _ in range(3):
                await load.infer(model)
                known = set((await vandal.get_system_shared_memory_status()).regions)
                (mine,) = known - stale
                await vandal.unregister_system_shared_memory(mine)
                await load.infer(model)
                assert mine not in set((await vandal.get_system_shared_memory_status()).regions)
                for each in stale:
                    await vandal.unregister_system_shared_memory(each)
                stale = {mine}
                await vandal.register_system_shared_memory(mine, path, 4096)
            await load.at_peace(model)
        known = set((await vandal.get_system_shared_memory_status()).regions)
        assert known == stale, "it is not ours any more, so closing leaves it alone"
        for each in stale:
            await vandal.unregister_system_shared_memory(each)
    finally:
        os.unlink(f"/dev/shm{path}")


async def test_the_model_is_unloaded_and_loaded(unruly, witness, load, vandal):
    """Calls are refused while it is not there; its slots are not lost with it."""
    allowed = (tz.InferenceError,)
    async with tz.Client(unruly.grpc_url) as client, client.model("work", slots=4) as model:
        load.start(model, *allowed)
        try:
            await load.some("ok", 20)
            await vandal.unload_model("work")
            await load.some("refused", 5)
        finally:
            await vandal.load_model("work")
        await load.some("ok", 20)
        await load.stop()
        await load.at_peace(model)
    assert "no available versions" in load.last_error or "not found" in load.last_error


async def test_the_server_refuses_shared_memory_from_now_on(fake, load):
    """What is registered goes on; what is lost cannot be registered again, until it is allowed."""
    allowed = (tz.SharedMemoryDisabled, tz.InferenceError)
    async with tz.Client(fake.grpc_url) as client, client.model("work", slots=4) as model:
        load.start(model, *allowed)
        await load.some("ok", 20)
        for _ in range(3):
            await fake.aset_client_shm(allowed=False)
            await fake.aforget()
            await load.some("refused", 5)
            await fake.aset_client_shm(allowed=True)
            await load.some("ok", 20)
        await load.stop()
        await load.at_peace(model)


async def test_region_of_the_caller_under_fire(unruly, witness, load, vandal):
    """A region that two calls share is taken away while one of them runs."""
    async with tz.Client(unruly.grpc_url) as client, client.model("work", slots=2) as model:
        async with client.region(4096) as region:
            for seconds in (0.0, 0.02, 0.02, 0.0):
                x = load.tensor(seconds)
                await region.write(x)

                async def call(x=x):
                    placed = region.tensor((16,), "FP32")
                    try:
                        result = await model.infer({"INPUT0": placed})
                    except tz.InferenceError as error:  # it was lost again while it was renewed
                        assert "Unable to find shared memory region" in str(error)
                    else:
                        load.check(x, result["OUTPUT0"], "region")

                calls = [asyncio.create_task(call()) for _ in range(2)]
                if seconds:
                    await until(lambda: model.statistics().in_flight == 2)
                for name in (await vandal.get_system_shared_memory_status()).regions:
                    try:
                        await vandal.unregister_system_shared_memory(name)
                    except Exception as error:
                        assert "in use" in str(error)
                await asyncio.gather(*calls)
        await load.at_peace(model)
