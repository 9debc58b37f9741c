"""The HTTP endpoint of a real server: sockets, TLS, texts of errors, the life of a client."""

from __future__ import annotations

import asyncio
import ssl

import numpy as np
import pytest
import trustme
from http_servers import scripted, tls_proxy
from loops import BOTH
from models import MODELS, NUMERIC
from support import forget_all, until, url_of

import triton_zerocopy as tz
from triton_zerocopy._transports.base import ServerError
from triton_zerocopy.testing import TritonServer

pytestmark = pytest.mark.anyio

X = np.arange(4, dtype=np.float32)
# Starting a server takes seconds.
ONE_LOOP = pytest.mark.parametrize("anyio_backend", BOTH[1:])


@pytest.fixture
def url(server):
    return url_of(server, "http")


async def works(client):
    async with client.model("fixed") as model:
        for _ in range(2):
            np.testing.assert_array_equal((await model.infer({"INPUT0": X}))["OUTPUT0"], X + 1)
        return model.memory


async def test_many_callers(url):
    async with tz.Client(url) as client, client.model("fixed", slots=8) as model:
        results = await asyncio.gather(*[model.infer({"INPUT0": X + n}) for n in range(200)])
        for n, result in enumerate(results):
            np.testing.assert_array_equal(result["OUTPUT0"], X + n + 1)
        connections = client._runtime.transport._connections
        assert len(connections._open) == len(connections._idle) <= 8


async def test_large_tensors_inline(url):
    x = np.arange(4_000_000, dtype=np.float32)
    async with tz.Client(url, memory="wire") as client, client.model("add_one") as model:
        for _ in range(2):
            result = await model.infer({"INPUT0": x})
            np.testing.assert_array_equal(result["OUTPUT0"], x + 1)
        async with model.lease({"INPUT0": x.shape}) as lease:
            lease.inputs["INPUT0"][:] = x
            assert not (await lease.infer())["OUTPUT0"].flags.writeable


@pytest.mark.parametrize("memory", ["system", "wire"])
async def test_empty_tensors(url, memory):
    """Without elements there is nothing that shared memory could hold."""
    async with tz.Client(url, memory=memory) as client, client.model("add_one") as model:
        for size in (0, 3, 0):
            x = np.zeros(size, np.float32)
            assert (await model.infer({"INPUT0": x}))["OUTPUT0"].shape == (size,)


async def test_options(url):
    async with tz.Client(url) as client, client.model("fixed") as model:
        given = {"s": 'é"\\', "i": -(2**60), "b": True, "f": 0.5}
        result = await model.infer(
            {"INPUT0": X}, request_id='my "é"', priority=1, queue_timeout=3, parameters=given
        )
        np.testing.assert_array_equal(result["OUTPUT0"], X + 1)
        assert result.request_id == 'my "é"'
        with pytest.raises(tz.InputError):
            await model.infer({"INPUT0": X}, request_id="a\r\nb")
        with pytest.raises(tz.InputError):
            await model.infer({"INPUT0": X}, parameters={"f": float("nan")})
        assert model.statistics().available == 4
        direct = await client.infer("fixed", {"INPUT0": X}, model_version="1")
        np.testing.assert_array_equal(direct["OUTPUT0"], X + 1)


async def test_names_that_are_no_models(url):
    async with tz.Client(url) as client:
        for name in ("no/model", "a b", "é", "%2e"):
            with pytest.raises(tz.InferenceError):
                await client.model(name)
        for name in ("", "..", "a\r\nb"):
            with pytest.raises(tz.InputError):
                await client.model(name)
            with pytest.raises(tz.InputError):
                await client.infer(name, {"INPUT0": X})
        with pytest.raises(tz.InputError):
            await client.model("fixed", "1\r\n")
        with pytest.raises(tz.InferenceError):
            await client.model("fixed", "7")
        assert (await client.model("fixed", "1")).inputs.keys() == {"INPUT0"}


async def test_the_codes_are_those_of_grpc(server):
    """What the rest of the library goes by."""
    transports = []
    clients = [tz.Client(url_of(server, each)) for each in ("grpc", "http")]
    for client in clients:
        await client.is_ready()
        transports.append(client._runtime.transport)

    async def outcomes(transport):
        told = []
        for call in (
            transport.register_system("tzc-test-1", "/tzc-not-there", 64, timeout=5),
            transport.register_cuda("tzc-test-1", bytes(64), 0, 64, timeout=5),
            transport.unregister_system("tzc-test-1", timeout=5),
            transport.unregister_cuda("tzc-test-1", timeout=5),
            transport.has_system("tzc-test-1", timeout=5),
            transport.has_cuda("tzc-test-1", timeout=5),
            transport.list_system(timeout=5),
            transport.list_cuda(timeout=5),
            transport.server_info(timeout=5),
            transport.is_ready(timeout=5),
            transport.model_spec("nope", "", timeout=5),
            transport.model_spec("fixed", "9", timeout=5),
            *[transport.model_spec(name, "", timeout=5) for name in MODELS],
        ):
            try:
                told.append(await call)
            except ServerError as error:
                told.append((error.code, error.message))
        for call in (
            lambda: transport.register_cuda("x", bytes(63), 0, 64, timeout=5),
            lambda: transport.unregister_system("", timeout=5),
            lambda: transport.unregister_cuda("", timeout=5),
        ):
            with pytest.raises(ValueError):
                await call()
        return told

    by_grpc, by_http = [await outcomes(transport) for transport in transports]
    assert by_http == by_grpc
    for client in clients:
        await client.aclose()


async def test_a_name_that_is_taken(server, url):
    """Registered by another client, as far as the server knows."""
    async with tz.Client(url) as client, client.region(4096) as region:
        transport = client._runtime.transport
        with pytest.raises(ServerError) as raised:
            await transport.register_system(region.name, region.key, 4096, timeout=5)
        assert raised.value.code == "ALREADY_EXISTS"
        assert region.name not in raised.value.message
        assert region.name in await transport.list_system(timeout=5)
        assert await transport.has_system(region.name, timeout=5)


@ONE_LOOP
async def test_a_unix_socket(tmp_path):
    path = tmp_path / "http"
    options = ["--http-address", f"unix:{path}"]
    async with TritonServer(models={"fixed": MODELS["fixed"]}, args=options):
        for url in (f"http+unix:{path}", f"http+unix://{path}"):
            async with tz.Client(url) as client:
                assert await works(client) == "system"
                with pytest.raises(tz.InputError, match="Unix"):
                    client.triton


async def test_tls(server, tmp_path):
    """Triton has none for HTTP, so something in front of it does."""
    authority, others = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    trusted = tz.SslOptions(root_certificates=authority.cert_pem.bytes())
    with tls_proxy(server.http_url, context) as port:
        for url in (
            f"https://localhost:{port}",
            f"https://127.0.0.1:{port}",
            f"http://localhost:{port}",
        ):
            async with tz.Client(url, ssl=trusted) as client:
                assert await works(client) == "system"
        async with tz.Client(f"https://localhost:{port}", ssl=trusted) as client:
            assert await client.triton.is_server_live()
        wrong = [
            tz.Client(f"https://localhost:{port}"),
            tz.Client(
                f"https://localhost:{port}",
                ssl=tz.SslOptions(root_certificates=others.cert_pem.bytes()),
            ),
            tz.Client(f"http://localhost:{port}"),
            tz.Client(f"https://{server.http_url}", ssl=trusted),
        ]
        for client in wrong:
            async with client:
                with pytest.raises(tz.ServerUnavailable):
                    await client.model("fixed")
        path = tmp_path / "roots"
        path.write_bytes(authority.cert_pem.bytes())
        options = tz.SslOptions(root_certificates=path)
        async with tz.Client(f"https://localhost:{port}", ssl=options) as client:
            assert await client.is_ready()


async def test_a_name_that_is_not_in_the_certificate(server):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("elsewhere.example").configure_cert(context)
    trusted = tz.SslOptions(root_certificates=authority.cert_pem.bytes())
    with tls_proxy(server.http_url, context) as port:
        async with tz.Client(f"https://localhost:{port}", ssl=trusted) as client:
            with pytest.raises(tz.ServerUnavailable, match="no connection was made"):
                await client.model("fixed")


async def test_a_server_that_wants_a_certificate(server):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    own = authority.issue_cert("client.example")
    roots = authority.cert_pem.bytes()
    chain, key = own.cert_chain_pems[0].bytes(), own.private_key_pem.bytes()
    with tls_proxy(server.http_url, context) as port:
        for options in (
            tz.SslOptions(roots, private_key=key, certificate_chain=chain),
            tz.SslOptions(roots, certificate_chain=own.private_key_and_cert_chain_pem.bytes()),
        ):
            async with tz.Client(f"https://localhost:{port}", ssl=options) as client:
                assert await works(client) == "system"
        async with tz.Client(f"https://localhost:{port}", ssl=tz.SslOptions(roots)) as client:
            with pytest.raises(tz.ServerUnavailable):
                await client.model("fixed")


@ONE_LOOP
async def test_restricted_shared_memory_needs_admin_headers():
    options = ["--http-restricted-api=shared-memory:access-token=open-sesame"]
    async with TritonServer(models={"fixed": MODELS["fixed"]}, args=options) as own:
        url = url_of(own, "http")
        async with tz.Client(url, admin_headers={"Access-Token": "open-sesame"}) as client:
            async with client.model("fixed", memory="system") as model:
                await model.infer({"INPUT0": X})
        async with tz.Client(url) as client:
            with pytest.raises(tz.RegistrationError, match="admin_headers"):
                await client.model("fixed", memory="system")
            assert await works(client) == "wire"


async def test_headers_go_with_every_call_and_admin_headers_with_some():
    """And none goes with any that asks for a compressed answer."""
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 14\r\n\r\n" + b'{"error":"no"}'
    async with scripted(answer) as server:
        async with tz.Client(
            f"http://127.0.0.1:{server.port}", headers={"A": "1"}, admin_headers={"B": "2"}
        ) as client:
            transport = client._runtime
            await client.is_ready()
            transport = client._runtime.transport
            for call in (
                transport.server_info(timeout=5),
                transport.model_spec("m", "", timeout=5),
                client.infer("m", {"INPUT0": X}),
            ):
                with pytest.raises((ServerError, tz.InferenceError)):
                    await call
            assert all(b"\r\na: 1\r\n" in each for each in server.requests)
            assert not any(b"\r\nb: 2\r\n" in each for each in server.requests)
            server.requests.clear()
            assert not await transport.has_system("x", timeout=5)
            for call in (
                transport.register_system("x", "/x", 1, timeout=5),
                transport.unregister_system("x", timeout=5),
                transport.list_system(timeout=5),
                transport.register_cuda("x", bytes(64), 0, 1, timeout=5),
                transport.unregister_cuda("x", timeout=5),
                transport.list_cuda(timeout=5),
            ):
                with pytest.raises(ServerError):
                    await call
            assert len(server.requests) == 7
            assert all(b"\r\na: 1\r\nb: 2\r\n" in each for each in server.requests)
            assert not any(b"accept" in each.lower() for each in server.requests)


async def test_the_port_of_the_other_endpoint(server):
    for url in (f"http://{server.grpc_url}", f"grpc://{server.http_url}"):
        async with tz.Client(url, timeout=5) as client:
            assert not await client.is_ready()
            with pytest.raises(
                tz.ServerUnavailable, match="that the url is its gRPC port, or http"
            ):
                await client.model("fixed")


@pytest.mark.parametrize("status", [b"200 OK", b"502 Bad Gateway", b"404 Not Found"])
async def test_a_proxy_that_answers_itself(status):
    page = b"<html><body>Bearer secret</body></html>"
    answer = b"HTTP/1.1 %b\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(page),
        page,
    )
    async with scripted(answer) as server:
        async with tz.Client(f"http://127.0.0.1:{server.port}") as client:
            for call in (client.model("fixed"), client.infer("fixed", {"INPUT0": X})):
                with pytest.raises((tz.InferenceError, tz.ServerUnavailable)) as raised:
                    await call
                assert "secret" not in str(raised.value)


async def test_every_datatype_in_a_lease(url):
    async with tz.Client(url) as client, client.model("echo") as model:
        shapes = dict.fromkeys(NUMERIC, (3, 2))
        async with model.lease(shapes) as lease:
            for name in NUMERIC:
                lease.inputs[name][:] = 1
            result = await lease.infer()
            for name in NUMERIC:
                assert result[f"OUT_{name}"].tobytes() == lease.inputs[name].tobytes(), name


async def test_closing_gives_up_after_its_timeout(server, url):
    client = tz.Client(url)
    model = await client.model("slow")
    await model.infer({"INPUT0": np.zeros(16, np.float32)})
    task = asyncio.create_task(model.infer({"INPUT0": np.full(16, 1.5, np.float32)}))
    await until(lambda: model.statistics().in_flight == 1)
    await client.aclose(timeout=0.05)
    with pytest.raises(tz.ServerUnavailable, match="client or its event loop was closed"):
        await task
    await forget_all(server, "http")
