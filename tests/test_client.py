"""The client's life: loops, closing, readiness, memory choice, credentials."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import trustme
from models import MODELS, has_strings
from support import forget, forget_all, own_files, own_regions, until

import triton_zerocopy as tz
from triton_zerocopy import _memory
from triton_zerocopy._server_versions import check_release, quirks_of
from triton_zerocopy._transports.base import ServerInfo
from triton_zerocopy.testing import TritonServer

pytestmark = pytest.mark.anyio

X = np.arange(4, dtype=np.float32)


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# Life


def test_making_a_client_needs_no_loop_and_does_no_io():
    client = tz.Client("no-such-host:1")
    assert "not used yet" in repr(client)


async def test_closed_things_say_so(server):
    client = tz.Client(server.grpc_url)
    model = await client.model("fixed")
    await model.infer({"INPUT0": X})
    await model.aclose()
    with pytest.raises(tz.PoolClosed, match="model 'fixed' is closed"):
        await model.infer({"INPUT0": X})
    with pytest.raises(tz.PoolClosed):
        model.lease()
    await model.aclose()
    other = await client.model("fixed")
    await client.aclose()
    await client.aclose()
    for use in (
        lambda: other.infer({"INPUT0": X}),
        lambda: client.model("fixed"),
        lambda: client.region(10),
        lambda: client.is_ready(),
        lambda: client.infer("fixed", {"INPUT0": X}),
    ):
        with pytest.raises(tz.ClientClosed):
            await use()
    with pytest.raises(tz.ClientClosed):
        async with client:
            pass
    assert own_files() == set()


async def test_a_client_that_was_never_used_is_closed_at_once():
    client = tz.Client("no-such-host:1")
    await client.aclose()
    with pytest.raises(tz.ClientClosed):
        await client.is_ready()


async def test_another_loop_is_refused(server):
    client = tz.Client(server.grpc_url)
    model = await client.model("fixed")

    def elsewhere():
        async def use():
            for call in (model.infer({"INPUT0": X}), client.is_ready(), client.aclose()):
                with pytest.raises(tz.WrongLoopError, match="another event loop"):
                    await call

        asyncio.run(use())
        with pytest.raises(tz.WrongLoopError, match="inside a running"):
            model.lease()

    await asyncio.to_thread(elsewhere)
    await model.infer({"INPUT0": X})
    await client.aclose()


async def test_a_forked_client_is_refused(server):
    code = f"""
import asyncio, os, sys
import triton_zerocopy as tz
client = tz.Client({server.grpc_url!r})
child = os.fork()
if child == 0:
    try:
        asyncio.run(client.is_ready())
    except tz.ForkedClientError:
        os._exit(7)
    os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert output.split() == [b"7"]


async def test_closing_names_the_leases_that_nobody_released(server, caplog):
    client = tz.Client(server.grpc_url)
    model = await client.model("fixed")
    lease = model.lease()
    async with lease, model.lease():
        pass
    await lease.__aexit__()
    late = model.lease()
    await late.__aenter__()
    with caplog.at_level(logging.WARNING, "triton_zerocopy"):
        await client.aclose(timeout=0.05)
    (record,) = [each for each in caplog.records if "still in use" in each.message]
    assert record.message.count("<Lease of model 'fixed', active, taken at") == 1
    assert f"{__file__}:" in record.message
    await late.__aexit__()


async def test_closing_waits_for_running_calls(server):
    x = np.full(16, 0.3, np.float32)
    client = tz.Client(server.grpc_url)
    model = await client.model("slow")
    task = asyncio.create_task(model.infer({"INPUT0": x}))
    await until(lambda: model.statistics().in_flight == 1)
    await client.aclose()
    np.testing.assert_array_equal((await task)["OUTPUT0"], x + 1)


async def test_closing_gives_up_after_its_timeout(server, caplog):
    x = np.full(16, 2, np.float32)
    client = tz.Client(server.grpc_url)
    model = await client.model("slow")
    await model.infer({"INPUT0": np.zeros(16, np.float32)})
    task = asyncio.create_task(model.infer({"INPUT0": x}))
    await until(lambda: model.statistics().in_flight == 1)
    with caplog.at_level(logging.WARNING, "triton_zerocopy"):
        await client.aclose(timeout=0.05)
    assert "1 calls unanswered" in caplog.text
    assert "not released" not in caplog.text
    with pytest.raises(tz.ServerUnavailable, match="client or its event loop was closed"):
        await task
    assert own_regions() == set()
    await forget_all(server)


async def test_waiters_fail_when_the_model_closes(server):
    x = np.full(16, 0.2, np.float32)
    async with tz.Client(server.grpc_url) as client:
        model = await client.model("slow", slots=1)
        first = asyncio.create_task(model.infer({"INPUT0": x}))
        await until(lambda: model.statistics().in_flight == 1)
        second = asyncio.create_task(model.infer({"INPUT0": x}))
        await until(lambda: model.statistics().waiting == 1)
        closing = asyncio.create_task(model.aclose())
        with pytest.raises(tz.PoolClosed):
            await second
        await first
        await closing


async def test_a_process_that_ends_without_closing_leaves_no_region(server):
    """It warns, and leaves its owner file, so the next client unregisters what is registered."""
    code = f"""
import asyncio, triton_zerocopy as tz
async def main():
    global client, region
    client = tz.Client({server.grpc_url!r})
    region = await client.region(64)
    print("/dev/shm/" + region.name)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "default", "-c", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0
    assert b"ResourceWarning: shared memory was never closed (made at <string>:6)" in errors
    assert not os.path.exists(output.decode().strip())
    await forget_all(server)


async def test_cancelling_the_close_does_not_stop_it(server):
    client = tz.Client(server.grpc_url)
    model = await client.model("fixed")
    await model.infer({"INPUT0": X})
    task = asyncio.create_task(client.aclose())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await client.aclose()
    assert own_files() == set()


async def test_cancelling_the_opening_of_a_model_leaves_nothing(server):
    async with tz.Client(server.grpc_url) as client:
        await client.is_ready()
        for turns in range(0, 40, 3):
            opening = client.model("rows", shapes={"INPUT0": (4, 3)})
            task = asyncio.ensure_future(opening.__aenter__())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                continue
            await opening.__aexit__(None, None, None)
        assert client.statistics().models == 0


# The server


async def test_readiness(server):
    async with tz.Client(server.grpc_url, timeout=5) as client:
        assert await client.is_ready()
        await client.wait_ready()
    async with tz.Client(f"127.0.0.1:{free_port()}") as client:
        assert not await client.is_ready()
        with pytest.raises(tz.ServerUnavailable, match=r"ready within 0\.2 seconds"):
            await client.wait_ready(timeout=0.2)
        with pytest.raises(tz.ServerUnavailable, match="check that the server runs"):
            await client.model("fixed")


async def test_tritonclient_is_at_hand(server):
    async with tz.Client(server.grpc_url) as client:
        assert client.triton is client.triton
        assert await client.triton.is_server_live()


async def test_a_reloaded_model_is_noticed(tmp_path):
    """The metadata is fetched again, once, when the server says it no longer fits."""
    four, five = (tmp_path / name for name in ("four", "five"))
    MODELS["fixed"].write(four, dlpack_only=not has_strings())
    MODELS["fixed"].write(five, dlpack_only=not has_strings())
    config = (five / "config.pbtxt").read_text()
    (four.parent / "models").mkdir()
    target = tmp_path / "models" / "m"
    four.rename(target)
    options = ["--model-control-mode=explicit", "--load-model=m"]
    async with TritonServer(model_repository=tmp_path / "models", args=options) as own:
        async with tz.Client(own.grpc_url) as client, client.model("m", slots=1) as model:
            await model.infer({"INPUT0": X})
            (target / "config.pbtxt").write_text(config.replace("[ 4 ]", "[ -1 ]"))
            await client.triton.load_model("m")
            await model.refresh()
            assert model.inputs["INPUT0"].shape == (-1,)
            (target / "config.pbtxt").write_text(config.replace("[ 4 ]", "[ 3 ]"))
            await client.triton.load_model("m")
            with pytest.raises(tz.InputError, match=r"expected shape \[3\]"):
                await model.infer({"INPUT0": X})
            for _ in range(2):
                result = await model.infer({"INPUT0": X[:3]})
                np.testing.assert_array_equal(result["OUTPUT0"], X[:3] + 1)


async def test_names_of_regions_reach_no_error(server, monkeypatch):
    """Whoever knows one may read the tensors in it."""

    async def do_not(_regions):
        pass

    async with tz.Client(server.grpc_url) as client, client.region(64) as region:
        monkeypatch.setattr(client._runtime.regions, "renew", do_not)
        await forget(client, region.name)
        with pytest.raises(tz.InferenceError, match=r"Unable to find .*: '\(a region\)'") as raised:
            await client.infer("add_one", {"INPUT0": region.tensor((4,), "FP32")})
        assert region.name not in str(raised.value)
        assert region.name not in repr(region)


async def test_a_server_that_lost_the_region_gets_it_again(server):
    """Somebody unregistered it, or the server restarted: it never ran, so it is repeated."""
    async with tz.Client(server.grpc_url) as client, client.model("fixed", slots=1) as model:
        await model.infer({"INPUT0": X})
        regions = (await client.triton.get_system_shared_memory_status()).regions
        for name in regions:
            await forget(client, name)
        result = await model.infer({"INPUT0": X})
        np.testing.assert_array_equal(result["OUTPUT0"], X + 1)
        async with model.lease() as lease:
            lease.inputs["INPUT0"][:] = X
            for name in (await client.triton.get_system_shared_memory_status()).regions:
                await forget(client, name)
            result = await lease.infer()
            np.testing.assert_array_equal(result["OUTPUT0"], X + 1)


# Memory


async def test_auto_takes_shared_memory_if_it_works(server):
    async with tz.Client(server.grpc_url) as client:
        models = await asyncio.gather(*[client.model("fixed") for _ in range(5)])
        assert {model.memory for model in models} == {"system"}


async def test_auto_falls_back_once_and_says_why(server, monkeypatch, caplog):
    """The server cannot open what is not where it looks: as in another container."""
    from triton_zerocopy._regions import system

    def elsewhere(self):
        return "/dev/shm/" + self.key[1:] + "-elsewhere"

    monkeypatch.setattr(system.SystemRegion, "_path", property(elsewhere))
    async with tz.Client(server.grpc_url) as client:
        with caplog.at_level(logging.WARNING, "triton_zerocopy"):
            one = await client.model("fixed")
            two = await client.model("fixed")
        assert one.memory == two.memory == "wire"
        (record,) = caplog.records
        assert "--ipc=host" in record.getMessage()
        np.testing.assert_array_equal((await one.infer({"INPUT0": X}))["OUTPUT0"], X + 1)
        with pytest.raises(tz.ServerCannotSeeMemory, match="--ipc=host"):
            await client.model("fixed", memory="system")
        with pytest.raises(tz.ServerCannotSeeMemory):
            await client.region(64)


async def test_a_url_of_several_servers_uses_the_wire(server, monkeypatch, caplog):
    monkeypatch.setattr(_memory, "count_servers", lambda target: 3)
    async with tz.Client(server.grpc_url) as client:
        with caplog.at_level(logging.WARNING, "triton_zerocopy"):
            assert (await client.model("fixed")).memory == "wire"
        assert "3 servers" in caplog.text
        with pytest.raises(tz.RegistrationError, match="3 servers"):
            await client.model("fixed", memory="system")


async def test_an_unreachable_server_decides_nothing(server):
    """The question is asked again when the server is there."""
    port = free_port()
    async with tz.Client(f"127.0.0.1:{port}") as client:
        with pytest.raises(tz.ServerUnavailable):
            await client.region(64)
        async with TritonServer(models={"fixed": MODELS["fixed"]}, grpc_port=port):
            await client.wait_ready(timeout=20)
            async with client.region(64):
                pass


async def test_restricted_shared_memory_needs_admin_headers():
    options = ["--grpc-restricted-protocol=shared-memory:access-token=open-sesame"]
    token = {"triton-grpc-protocol-access-token": "open-sesame"}
    async with TritonServer(models={"fixed": MODELS["fixed"]}, args=options) as own:
        async with tz.Client(own.grpc_url, admin_headers=token) as client:
            async with client.model("fixed", memory="system") as model:
                await model.infer({"INPUT0": X})
        async with tz.Client(own.grpc_url) as client:
            with pytest.raises(tz.RegistrationError, match="admin_headers"):
                await client.model("fixed", memory="system")
            assert (await client.model("fixed")).memory == "wire"


async def test_tls(tmp_path):
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    files = {"cert": certificate.cert_chain_pems[0], "key": certificate.private_key_pem}
    for name, pem in files.items():
        pem.write_to_path(str(tmp_path / name))
    options = [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={tmp_path / 'cert'}",
        f"--grpc-server-key={tmp_path / 'key'}",
    ]
    trusted = tz.SslOptions(root_certificates=authority.cert_pem.bytes())
    async with TritonServer(models={"fixed": MODELS["fixed"]}, args=options) as own:
        url = f"grpcs://{own.grpc_url}"
        async with tz.Client(url, ssl=trusted) as client, client.model("fixed") as model:
            np.testing.assert_array_equal((await model.infer({"INPUT0": X}))["OUTPUT0"], X + 1)
            assert await client.triton.is_server_live()
        for wrong in (tz.Client(url, timeout=5), tz.Client(own.grpc_url, timeout=5)):
            async with wrong:
                with pytest.raises(tz.ServerUnavailable):
                    await wrong.model("fixed")
        path = tmp_path / "roots"
        path.write_bytes(authority.cert_pem.bytes())
        options = tz.SslOptions(root_certificates=path)
        async with tz.Client(own.grpc_url, ssl=options) as client:
            assert await client.is_ready()


async def test_unix_sockets(tmp_path):
    path = tmp_path / "grpc"
    options = ["--grpc-address", f"unix:{path}"]
    async with TritonServer(models={"fixed": MODELS["fixed"]}, args=options):
        (socket_path,) = tmp_path.glob("grpc*")
        async with tz.Client(f"unix:{socket_path}") as client, client.model("fixed") as model:
            assert model.memory == "system"
            np.testing.assert_array_equal((await model.infer({"INPUT0": X}))["OUTPUT0"], X + 1)


def test_servers_without_a_fence_are_refused():
    for version, is_refused in [
        ("2.49.0", True),
        ("2.50.0", False),
        ("2.9.1", True),
        ("3.0.0", False),
        ("dev", False),
    ]:
        info = ServerInfo("triton", version, ())
        if is_refused:
            with pytest.raises(tz.RegistrationError, match="memory='wire'"):
                check_release(info)
        else:
            check_release(info)


@pytest.mark.parametrize(
    ("version", "said", "not_said"),
    [
        ("2.49.0", "over the wire", "refuses"),
        ("2.50.0", "refuses to unregister", "over the wire"),
        ("2.52.9", "refuses to unregister", "at once"),
        ("2.53.0", "at once", "refuses"),
        ("2.60.0", "at once", "counts the offset"),
        ("2.72.0", "--allow-client-shm", "maps another file"),
        ("dev", "--allow-client-shm", "can crash"),
    ],
)
def test_what_is_known_of_a_version(version, said, not_said):
    told = "\n".join(map(str, quirks_of(ServerInfo("triton", version, ()))))
    assert said in told
    assert not_said not in told
    assert "ensemble" in told


async def test_statistics_tell_what_the_server_does(server):
    async with tz.Client(server.grpc_url) as client:
        assert client.statistics().server_version == ""
        async with client.model("fixed"):
            picture = client.statistics()
            assert picture.server_version == "2.51.0"
            assert any("refuses to unregister" in each for each in picture.server_quirks)


async def test_poison_fills_the_outputs_before_each_call(server):
    async with tz.Client(server.grpc_url, poison=True) as client:
        async with client.model("slow", slots=1) as model, model.lease() as lease:
            lease.inputs["INPUT0"][:] = 0
            output = (await lease.infer())["OUTPUT0"]
            lease.inputs["INPUT0"][:] = 0.2
            task = asyncio.create_task(lease.infer())
            await until(lambda: model.statistics().in_flight == 1)
            assert set(output.view(np.uint8).tolist()) == {0xA5}
            await task


async def test_auto_takes_the_wire_where_there_is_no_room(server, caplog):
    async with tz.Client(server.grpc_url, max_shm_bytes=0) as client:
        with caplog.at_level(logging.WARNING, "triton_zerocopy"):
            assert (await client.model("fixed")).memory == "wire"
        assert "max_shm_bytes=0" in caplog.text
        with pytest.raises(tz.CapacityError):
            await client.model("fixed", memory="system")


async def test_closing_gives_up_on_regions_after_its_timeout(server, caplog):
    client = tz.Client(server.grpc_url)
    region = await client.region(4096)
    region.array((16,), "float32")[:] = 0.6
    task = asyncio.create_task(
        client.infer("slow", {"INPUT0": region.tensor((16,), "FP32")}, outputs=["OUTPUT0"])
    )
    await asyncio.sleep(0)
    with caplog.at_level(logging.WARNING, "triton_zerocopy"):
        await client.aclose(timeout=0.05)
    assert "while a call still used it" in caplog.text
    with pytest.raises(tz.ServerUnavailable, match="client or its event loop was closed"):
        await task
    assert own_regions() == set()
    await forget_all(server)


async def test_a_connection_that_takes_half_a_second_to_make(server):
    """As on a machine that is busy, or far away: the first call waits for it."""
    host, port = server.grpc_url.split(":")

    async def forward(reader, writer):
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def serve(reader, writer):
        await asyncio.sleep(0.5)  # what the connection takes
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(forward(reader, back), forward(there, writer))

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with proxy:
        url = "{}:{}".format(*proxy.sockets[0].getsockname())
        async with tz.Client(url) as client, client.model("fixed") as model:
            x = np.zeros(4, np.float32)
            assert np.array_equal((await model.infer({"INPUT0": x}))["OUTPUT0"], x + 1)
