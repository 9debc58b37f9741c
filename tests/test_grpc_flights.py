"""Infer calls over gRPC: one that is alone goes straight to grpc.aio's coroutine, others do not.

Whoever calls cannot tell the two ways apart.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import grpc
import grpc.aio
import numpy as np
import pytest
from support import until

import triton_zerocopy as tz
from triton_zerocopy._endings import Ending, ending_of
from triton_zerocopy._transports import grpc_flights
from triton_zerocopy._transports.base import (
    DEFAULT_OPTIONS,
    InferRequest,
    InputRef,
    MemoryRef,
    OutputRef,
    ServerError,
)
from triton_zerocopy._transports.grpc import GrpcTransport
from triton_zerocopy._urls import parse_url

pytestmark = pytest.mark.anyio

X = np.arange(4, dtype=np.float32)
OTHER_RELEASES = ((0, 1), (0, 2))


@pytest.fixture(params=["straight", "public"])
def way(request, monkeypatch):
    """Each of the two ways, for a call that is alone."""
    if request.param == "public":
        monkeypatch.setattr(grpc_flights, "_TRIED", OTHER_RELEASES)
    return request.param


@pytest.fixture
async def connect(way):
    """Return what connects to a url, and closes the connection after the test."""
    made = []

    def connect(url, headers=()):
        transport = GrpcTransport(parse_url(url), ssl=None, headers=dict(headers), admin_headers={})
        made.append(transport)
        assert (transport._flights._inside is None) == (way == "public")
        return transport

    yield connect
    for transport in made:
        await transport.aclose()
        await until(lambda t=transport: t._flights.under_way == 0)


def begin(transport, model="fixed", *, x=X, memory=None):
    """Send a request, return a future of the answer."""
    future = asyncio.get_running_loop().create_future()

    def done(reply, error):
        if error is None:
            future.set_result(reply)
        elif isinstance(error, ServerError):
            future.set_exception(error)
        else:
            future.set_result(error)

    inputs = [InputRef("INPUT0", "FP32", x.shape, memory)]
    prepared = transport.prepare(InferRequest(model, "", inputs, [OutputRef("OUTPUT0", None)]))
    payloads = [] if memory else [memoryview(x.tobytes())]
    transport.infer(transport.compose(prepared, payloads, DEFAULT_OPTIONS), done)
    return future


@contextmanager
def serving(answer):
    """Serve in a thread what a function answers to any call; give the url, and what stops it."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            return grpc.unary_unary_rpc_method_handler(answer)

    with ThreadPoolExecutor(1) as threads:
        # Not grpc.aio's server, which may still ask for its event loop when that is closed.
        server = grpc.server(threads, handlers=[Handler()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}", lambda: server.stop(None).wait()
        finally:
            server.stop(None).wait()


class Held:
    """An answer that does not come before the end of the block."""

    def __init__(self):
        self.came, self._is_over = threading.Event(), threading.Event()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._is_over.set()

    def __call__(self, request, context):
        self.came.set()
        self._is_over.wait()


async def test_an_answer(server, connect):
    transport = connect(server.grpc_url)
    for _ in range(3):
        reply = await begin(transport)
        np.testing.assert_array_equal(np.frombuffer(reply.outputs[0].data, np.float32), X + 1)
    assert transport._flights.under_way == 0


@pytest.mark.parametrize(
    ("code", "text", "request_"),
    [
        ("NOT_FOUND", "unknown model: 'nothing'", {"model": "nothing"}),
        ("INVALID_ARGUMENT", "unexpected shape", {"x": np.zeros(5, np.float32)}),
        ("NOT_FOUND", "Unable to find shared memory region", {"memory": MemoryRef("no", 0, 16)}),
    ],
)
async def test_an_error(server, connect, code, text, request_):
    transport = connect(server.grpc_url)
    with pytest.raises(ServerError, match=text) as caught:
        await begin(transport, **request_)
    assert caught.value.code == code
    assert (await begin(transport)).outputs, "the next one is not touched by it"


async def test_nobody_listens(connect):
    with pytest.raises(ServerError, match="failed to connect") as caught:
        await begin(connect("127.0.0.1:1"))
    assert caught.value.code == "UNAVAILABLE"


@pytest.mark.parametrize("way", ["straight"], indirect=True)
async def test_a_call_under_way_is_given_up_when_the_transport_closes(connect):
    """Of a call that went the public way, grpc.aio may still tell the loop when that is closed."""
    answer = Held()
    with serving(answer) as (url, _), answer:
        transport = connect(url)
        future = begin(transport)
        await until(answer.came.is_set)
        await transport.aclose()
        assert isinstance(await future, asyncio.CancelledError)


async def test_a_connection_that_breaks(connect):
    answer = Held()
    with serving(answer) as (url, stop), answer:
        future = begin(connect(url))
        await until(answer.came.is_set)
        stop()
        with pytest.raises(ServerError) as caught:
            await future
    assert ending_of(caught.value) is Ending.AMBIGUOUS


async def test_no_call_begins_on_a_closed_transport(server, connect):
    transport = connect(server.grpc_url)
    assert (await begin(transport)).outputs
    await transport.aclose()
    with pytest.raises(grpc.aio.UsageError):
        begin(transport)
    assert transport._flights.under_way == 0


async def test_headers_are_sent(connect):
    seen = []

    def answer(request, context):
        seen.append(dict(context.invocation_metadata()))
        context.abort(grpc.StatusCode.ABORTED, "a ä text")

    with serving(answer) as (url, _):
        with pytest.raises(ServerError, match="a ä text") as caught:
            await begin(connect(url, {"x-who": "me"}))
    assert caught.value.code == "ABORTED"
    assert seen[0]["x-who"] == "me"


async def test_an_answer_that_cannot_be_read(connect):
    with serving(lambda request, context: b"\xff\xff\xff") as (url, _):
        with pytest.raises(ServerError, match="unreadable") as caught:
            await begin(connect(url))
    assert caught.value.code == "DATA_LOSS"


async def test_only_who_is_alone_goes_straight(server, monkeypatch):
    real, straight = grpc_flights.Flights._straight, []

    def spy(self, call, message):
        straight.append(self.under_way)
        return real(self, call, message)

    monkeypatch.setattr(grpc_flights.Flights, "_straight", spy)
    x = {"INPUT0": X}
    async with tz.Client(server.grpc_url) as client, client.model("fixed", slots=8) as model:
        if client._runtime.transport._flights._inside is None:
            pytest.skip(f"grpcio {grpc.__version__} was not tried")
        await asyncio.gather(*[model.infer(x) for _ in range(8)])  # all slots have memory now
        straight.clear()
        for _ in range(3):
            await model.infer(x)
        assert straight == [0, 0, 0]
        await asyncio.gather(*[model.infer(x) for _ in range(8)])
        assert straight == [0, 0, 0, 0]


@pytest.mark.parametrize("release", ["1.80.9", "1.86.0", "2.0.0", "1.86.0rc1"])
async def test_an_untried_release_goes_the_public_way(server, monkeypatch, release):
    monkeypatch.setattr(grpc, "__version__", release)
    async with tz.Client(server.grpc_url) as client, client.model("fixed") as model:
        assert client._runtime.transport._flights._inside is None
        np.testing.assert_array_equal((await model.infer({"INPUT0": X}))["OUTPUT0"], X + 1)


@pytest.mark.parametrize(
    "inside",
    [
        {},
        {"_channel": object(), "_method": b"/method"},
        {"_channel": SimpleNamespace(call=None), "_method": "/method"},
    ],
)
async def test_an_inside_that_looks_different_is_left_alone(inside):
    assert grpc_flights.inside_of(SimpleNamespace(**inside)) is None
