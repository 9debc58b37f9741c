"""HTTP connections: servers that misbehave at every byte, and how connections come and go."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest
from http_servers import ANSWER, BINARY, BODY, CHUNKED, UNTIL_THE_END, scripted, serving, then_close
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import until

from triton_zerocopy._endings import Ending, ending_of
from triton_zerocopy._http import connection as connection_module
from triton_zerocopy._http import pool as pool_module
from triton_zerocopy._http.connection import Connection
from triton_zerocopy._http.pool import Address
from triton_zerocopy._transports.base import (
    DEFAULT_OPTIONS,
    InferReply,
    InferRequest,
    InputRef,
    MemoryRef,
    OutputRef,
    ServerError,
)
from triton_zerocopy._transports.http import HttpTransport
from triton_zerocopy._transports.http_replies import InferReader
from triton_zerocopy._urls import parse_url

pytestmark = [pytest.mark.anyio, pytest.mark.once]

PLACE = MemoryRef("r", 0, 16)
PLAIN = InferRequest("m", "", [InputRef("X", "FP32", (4,), PLACE)], [OutputRef("Y", PLACE)])
INLINE = InferRequest("m", "", [InputRef("X", "UINT8", (-1,))], [OutputRef("Y")])


@asynccontextmanager
async def transport_to(port, scheme="http"):
    transport = HttpTransport(
        parse_url(f"{scheme}://127.0.0.1:{port}"), ssl=None, headers={}, admin_headers={}
    )
    try:
        yield transport
    finally:
        await transport.aclose()


def plain(transport):
    """Return the message of a call without options, all in shared memory."""
    return transport.compose(transport.prepare(PLAIN), (), DEFAULT_OPTIONS)


def begin(transport, message=None):
    """Send a request; returns the future of its answer."""
    future = asyncio.get_running_loop().create_future()

    def done(reply, error):
        assert not future.done(), "done is called once"
        future.set_result((reply, error))

    transport.infer(message or plain(transport), done)
    return future


async def ask(transport, message=None):
    async with asyncio.timeout(20):
        return await begin(transport, message)


def receive(connection, data):
    """Have a connection receive these bytes at once."""
    connection.get_buffer(-1)[: len(data)] = data
    connection.buffer_updated(len(data))


def check_is_the_answer(reply, error):
    assert error is None
    assert reply == InferReply("m", "1", "", {}, [("Y", "FP32", (4,), b"")])


def large(transport, byte_size):
    return transport.compose(
        transport.prepare(INLINE), [memoryview(bytes(byte_size))], DEFAULT_OPTIONS
    )


# Answers that stop


@pytest.mark.parametrize("answer", [ANSWER, CHUNKED, BINARY], ids=["length", "chunked", "binary"])
async def test_a_server_that_closes_at_each_byte_of_its_answer(answer):
    cut = 0
    sent = []

    async def play(writer):
        sent.append(cut)
        await then_close(answer[:cut])(writer)

    async with scripted(play) as server, transport_to(server.port) as transport:
        while cut < len(answer):
            reply, error = await ask(transport)
            assert reply is None
            assert error.code == "UNAVAILABLE"
            assert ending_of(error) is Ending.AMBIGUOUS, "it may have run"
            cut += 1
        assert sent == list(range(len(answer)))
        reply, error = await ask(transport)
        assert error is None


async def test_an_answer_that_ends_with_its_connection():
    """As of HTTP/1.0. What stops before its end is no JSON, or has too few bytes."""
    cut = len(UNTIL_THE_END)

    async def play(writer):
        await then_close(UNTIL_THE_END[:cut])(writer)

    async with scripted(play) as server, transport_to(server.port) as transport:
        for _ in range(2):
            check_is_the_answer(*await ask(transport))
        assert server.connections == 2
        while cut:
            cut -= 1
            reply, error = await ask(transport)
            assert (reply, ending_of(error)) == (None, Ending.AMBIGUOUS)


async def test_a_server_that_closes_at_each_byte_of_the_request():
    stop = 0

    async def serve(reader, writer):
        if stop:
            await reader.readexactly(stop)
        writer.transport.abort()

    async with serving(serve) as port, transport_to(port) as transport:
        message = plain(transport)
        for stop in range(len(message) + 1):
            reply, error = await ask(transport, message)
            assert (reply, error.code) == (None, "UNAVAILABLE")
            assert ending_of(error) in (Ending.AMBIGUOUS, Ending.NOT_RUN)
            assert stop == 0 or ending_of(error) is Ending.AMBIGUOUS


# Answers in pieces


@asynccontextmanager
async def silent():
    """A transport with one idle connection to a server that never says anything."""
    async with serving(lambda reader, writer: reader.read()) as port:
        async with transport_to(port) as transport:
            await open_one(transport)
            yield transport


async def open_one(transport):
    pool = transport._connections
    connection = await pool._connect()
    pool._idle.append(connection)
    return connection


@pytest.mark.parametrize("answer", [ANSWER, CHUNKED, BINARY], ids=["length", "chunked", "binary"])
async def test_an_answer_that_comes_in_two_pieces(answer):
    async with silent() as transport:
        (connection,) = transport._connections._open
        for cut in range(1, len(answer)):
            future = begin(transport)
            receive(connection, answer[:cut])
            assert not future.done()
            receive(connection, answer[cut:])
            reply, error = await future
            assert error is None
            assert reply.outputs[0].name == "Y"
            assert bytes(reply.outputs[0].data) == (b"abcd" if answer is BINARY else b"")
            assert transport._connections._idle == [connection]
            assert not transport._reader.known, "a piece is not the answer"


async def test_an_answer_byte_by_byte_after_others():
    """Continue comes before the answer, and is none."""
    begins = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    async with silent() as transport:
        (connection,) = transport._connections._open
        for answer in (ANSWER, CHUNKED):
            future = begin(transport)
            for index in range(len(begins)):
                receive(connection, begins[index : index + 1])
            assert not future.done()
            for index in range(len(answer)):
                receive(connection, answer[index : index + 1])
            check_is_the_answer(*await future)


async def test_what_follows_a_body_is_no_header():
    answer = CHUNKED.replace(b"Trailer: x", b"Inference-Header-Content-Length: 1")
    async with scripted(answer) as server, transport_to(server.port) as transport:
        check_is_the_answer(*await ask(transport))


async def test_answers_that_are_the_same_are_parsed_once(monkeypatch):
    async with scripted(ANSWER) as server, transport_to(server.port) as transport:
        first, _ = await ask(transport)
        assert list(transport._reader.known) == [ANSWER]
        monkeypatch.setattr(transport._reader, "read", None)
        second, _ = await ask(transport)
        assert second is first
        assert server.connections == 1


async def test_what_is_not_remembered():
    """Tensor bytes, errors, what closes the connection, and more than one answer."""
    error = b'HTTP/1.1 404 Not Found\r\nContent-Length: 14\r\n\r\n{"error":"no"}'
    closing = ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    long = BODY.replace(b'"m"', b'"%b"' % (b"m" * 1024))
    long = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(long), long)
    async with silent() as transport:
        for answer in (BINARY, error, closing, ANSWER + ANSWER, long):
            connection = transport._connections._idle[0]
            future = begin(transport)
            receive(connection, answer)
            await future
            assert not transport._reader.known, answer
            if not transport._connections._idle:
                await open_one(transport)


async def test_only_so_many_answers_are_remembered():
    reader = InferReader()
    for number in range(1000):
        reader.learn(b"%d" % number, InferReply("m", "1", "", {}, []))
    assert 0 < len(reader.known) <= 256


# Answers that are none

HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"\x00" * 20, "not HTTP"),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x04\x00\x3f\xff\xff", "not HTTP"),  # HTTP/2
        (b"\x15\x03\x03\x00\x02\x02\x46", "not HTTP"),  # an alert of TLS
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", "not HTTP"),
        (b"HTTP/9.9 200 OK\r\n\r\n", "not HTTP"),
        (HEAD + b"Content-Length: -1\r\n\r\n", "not HTTP"),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345", "not HTTP"),
        (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "not HTTP"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", "not HTTP"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", "not HTTP"),
        (HEAD + b"X : y\r\n\r\n", "not HTTP"),
        (HEAD + b"X: a\rb\r\n\r\n", "not HTTP"),
        (HEAD + b"Content-Length: 2147483648\r\n\r\n", "too long"),
        (HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n", "not HTTP"),
        (HEAD + b"X: " + b"a" * 70_000, "too long"),
        (HEAD + b"X: y\r\n" * 20_000, "too long"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 4000, "too long"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", "HTTP"),
    ],
)
async def test_what_is_no_answer(answer, text):
    async with scripted(answer) as server, transport_to(server.port) as transport:
        for _ in range(2):
            reply, error = await ask(transport)
            assert (reply, error.code) == (None, "UNAVAILABLE")
            assert text in error.message
            assert ending_of(error) is Ending.AMBIGUOUS
        assert server.connections == 2, "its connection is not used again"


async def test_bodies_have_a_limit(monkeypatch):
    """However they come: in chunks, until the end, or before trailers without an end."""
    monkeypatch.setattr(connection_module, "MAX_BODY", 5000)
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    size = 5000 + connection_module.MAX_HEAD
    for answer in (
        chunked + b"400\r\n%b\r\n" % bytes(1024) * 80,
        chunked + b"1;%b\r\n" % bytes(size).replace(b"\0", b"a"),
        chunked + b"0\r\nX: " + b"a" * size,
        HEAD + b"\r\n" + b"a" * size,
        HEAD + b"Content-Length: 5001\r\n\r\n",
    ):
        async with scripted(answer) as server, transport_to(server.port) as transport:
            _, error = await ask(transport)
            assert "too long" in error.message, answer[:60]


async def test_more_than_was_asked_for():
    """The answer counts, its connection does not serve again."""
    for junk in (ANSWER, b"junk", b"\r\n\r\nHTTP/1.1 200 OK\r\n"):
        async with scripted(ANSWER + junk) as server, transport_to(server.port) as transport:
            for _ in range(2):
                check_is_the_answer(*await ask(transport))
            assert server.connections == 2


@pytest.mark.parametrize("asked", [0, 1, 2])
async def test_an_answer_that_nobody_asked_for(asked):
    """Were it kept, it would be taken for the answer to the next call. It may be a known one."""
    async with silent() as transport:
        (connection,) = transport._connections._idle
        for _ in range(asked):
            future = begin(transport)
            receive(connection, ANSWER)
            check_is_the_answer(*await future)
        receive(connection, ANSWER)
        await until(lambda: not transport._connections._open)
        assert not transport._connections._idle


async def test_a_body_that_is_a_known_answer():
    """It is a body all the same."""
    async with silent() as transport:
        (connection,) = transport._connections._open
        future = begin(transport)
        receive(connection, ANSWER)
        await future
        future = begin(transport)
        receive(connection, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(ANSWER))
        receive(connection, ANSWER)
        _, error = await future
        assert "unreadable answer" in error.message


async def test_a_call_that_follows_at_once_on_an_answer_that_ends_with_its_connection():
    ends = []
    async with (
        scripted(then_close(UNTIL_THE_END)) as server,
        transport_to(server.port) as transport,
    ):
        message = plain(transport)

        def done(reply, error):
            ends.append(error)
            if len(ends) < 4:
                transport.infer(message, done)

        transport.infer(message, done)
        await until(lambda: len(ends) == 4)
        assert ends == [None] * 4
        assert server.connections == 4


@given(
    answer=st.sampled_from([ANSWER, CHUNKED, BINARY, UNTIL_THE_END]),
    edits=st.lists(
        st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=4)), max_size=4
    ),
)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_answer_is_a_reply_or_an_error(answer, edits):
    """Whatever comes before the server hangs up, `done` is called once, with one of the two."""
    for position, removed, added in edits:
        position %= len(answer) + 1
        answer = answer[:position] + added + answer[position + removed :]

    async def exchange():
        pool, lost, room = [], [], memoryview(bytearray(64))
        ours, theirs = socket.socketpair()
        with theirs:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(
                lambda: Connection(room, pool, set(), lambda: lost.append(1)), sock=ours
            )
            ends = []
            connection.send(b"x", lambda *end: ends.append(end), InferReader())
            theirs.sendall(answer)
        async with asyncio.timeout(20):
            await until(lambda: lost)
        ((reply, error),) = ends
        assert isinstance(reply, InferReply) or isinstance(error, ServerError)
        assert (reply is None) != (error is None)
        assert not pool

    asyncio.run(exchange())


# Connections


async def test_connections_that_the_server_closed_while_idle_are_not_used():
    async with scripted(then_close(ANSWER)) as server, transport_to(server.port) as transport:
        for number in range(1, 4):
            check_is_the_answer(*await ask(transport))
            await until(lambda: not transport._connections._open)
            assert server.connections == number


async def test_a_connection_that_says_it_closes_is_not_used_again():
    answer = ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    async with scripted(answer) as server, transport_to(server.port) as transport:
        for number in range(1, 4):
            check_is_the_answer(*await ask(transport))
            assert server.connections == number
            await until(lambda: not transport._connections._open)


async def test_a_call_on_a_connection_that_is_just_being_closed():
    """The server closes on getting the second request: whether it runs nobody can tell."""
    async with scripted(ANSWER) as server, transport_to(server.port) as transport:
        check_is_the_answer(*await ask(transport))
        server._play = then_close(b"")
        _, error = await ask(transport)
        assert ending_of(error) is Ending.AMBIGUOUS
        server._play = then_close(ANSWER)
        check_is_the_answer(*await ask(transport))


async def test_a_connection_that_is_closing_is_passed_over():
    """The loop may know before the connection is told."""
    async with scripted(ANSWER) as server, transport_to(server.port) as transport:
        check_is_the_answer(*await ask(transport))
        (connection,) = transport._connections._idle
        connection._transport.close()
        check_is_the_answer(*await ask(transport))
        assert server.connections == 2


async def test_one_call_at_a_time_on_each_connection_and_the_last_one_first():
    arrived = asyncio.Semaphore(0)
    go_on = asyncio.Event()

    async def play(writer):
        arrived.release()
        await go_on.wait()
        writer.write(ANSWER)

    async with scripted(play) as server, transport_to(server.port) as transport:
        futures = [begin(transport) for _ in range(5)]
        for _ in range(5):
            await arrived.acquire()
        go_on.set()
        for future in futures:
            check_is_the_answer(*await future)
        assert server.connections == 5
        last = transport._connections._idle[-1]
        for _ in range(10):
            check_is_the_answer(*await ask(transport))
            assert transport._connections._idle[-1] is last
        assert server.connections == 5


async def test_connections_that_are_not_needed_are_closed_in_time():
    go_on = asyncio.Event()

    async def play(writer):
        await go_on.wait()
        writer.write(ANSWER)

    async with scripted(play) as server, transport_to(server.port) as transport:
        pool = transport._connections
        futures = [begin(transport) for _ in range(4)]
        await until(lambda: len(server.requests) == 4)
        assert pool._trimming is not None
        go_on.set()
        for future in futures:
            await future
        pool._trim()
        await asyncio.sleep(0)
        assert len(pool._open) == 4, "all of them were needed since"
        await ask(transport)
        pool._trim()
        await until(lambda: len(pool._open) == 1)
        check_is_the_answer(*await ask(transport))
        assert server.connections == 4
        pool._trim()
        pool._trim()
        await until(lambda: not pool._open)
        assert pool._trimming is None
        check_is_the_answer(*await ask(transport))
        assert pool._trimming is not None


async def test_no_connection():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        async with transport_to(port) as transport:
            _, error = await ask(transport)
            assert error.code == "UNAVAILABLE"
            assert ending_of(error) is Ending.NOT_RUN
            with pytest.raises(ServerError, match="no connection was made"):
                await transport.server_info(timeout=5)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".invalid"])
async def test_a_host_that_is_not_there(host):
    transport = HttpTransport(parse_url(f"http://{host}:1"), ssl=None, headers={}, admin_headers={})
    _, error = await ask(transport)
    assert ending_of(error) is Ending.NOT_RUN
    await transport.aclose()


async def test_a_connection_that_is_not_made_in_time(monkeypatch):
    """TLS to a server that does not answer."""
    monkeypatch.setattr(pool_module, "CONNECT_TIMEOUT", 0.05)
    async with serving(lambda reader, writer: reader.read()) as port:
        async with transport_to(port) as transport:
            transport._connections._ssl = pool_module.tls.create_default_context()
            _, error = await ask(transport)
            assert "more than 0.05 seconds" in error.message
            assert ending_of(error) is Ending.NOT_RUN
            assert not transport._connections._open


async def test_a_connection_that_is_closed_as_soon_as_it_is_made():
    async with silent() as transport:
        pool = transport._connections
        making = asyncio.create_task(pool._connect())
        (await making).close()
        await until(lambda: len(pool._open) == 1)
        ends = []
        pool._connected(b"x", lambda *end: ends.append(end), transport._reader, making)
        ((_, error),) = ends
        assert ending_of(error) is Ending.NOT_RUN, "nothing was sent"


async def test_closing_does_not_wait_for_connections_that_are_being_made():
    async with serving(lambda reader, writer: reader.read()) as port:
        async with transport_to(port) as transport:
            transport._connections._ssl = pool_module.tls.create_default_context()
            future = begin(transport)
            await asyncio.sleep(0)
            async with asyncio.timeout(pool_module.CONNECT_TIMEOUT / 2):
                await transport.aclose()
            _, error = await future
            assert isinstance(error, asyncio.CancelledError)


async def test_a_unix_socket_that_is_not_there(tmp_path):
    transport = HttpTransport(
        parse_url(f"http+unix:{tmp_path / 'none'}"), ssl=None, headers={}, admin_headers={}
    )
    _, error = await ask(transport)
    assert ending_of(error) is Ending.NOT_RUN
    await transport.aclose()


# Large requests


async def test_a_large_request_is_written_as_fast_as_it_is_taken():
    size = 32 << 20
    begun, go_on = asyncio.Event(), asyncio.Event()
    received = 0

    async def serve(reader, writer):
        nonlocal received
        data = await reader.readuntil(b"\r\n\r\n")
        begun.set()
        await go_on.wait()
        while received < size:
            data = await reader.read(1 << 20)
            received += len(data)
        writer.write(ANSWER)

    async with serving(serve) as port, transport_to(port) as transport:
        future = begin(transport, large(transport, size))
        await begun.wait()
        (connection,) = transport._connections._open
        await until(lambda: connection._is_paused)
        assert connection._transport.get_write_buffer_size() < 4 << 20
        go_on.set()
        check_is_the_answer(*await future)
        assert transport._connections._idle == [connection]


async def test_an_answer_before_the_request_is_all_there():
    """A refusal of its length: the answer counts, the connection is of no use any more."""
    go_on = asyncio.Event()
    text = b'{"error":"too large"}'
    refusal = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(refusal)
        await go_on.wait()

    async with serving(serve) as port, transport_to(port) as transport:
        for known in ({}, {refusal: "an earlier answer"}):
            transport._reader.known = known
            _, error = await ask(transport, large(transport, 32 << 20))
            assert (error.code, error.message) == ("INVALID_ARGUMENT", "too large")
            assert not transport._connections._idle
        go_on.set()


async def test_a_connection_that_breaks_within_a_large_request():
    async def serve(reader, writer):
        await reader.readexactly(1 << 20)
        writer.transport.abort()

    async with serving(serve) as port, transport_to(port) as transport:
        _, error = await ask(transport, large(transport, 32 << 20))
        assert ending_of(error) is Ending.AMBIGUOUS


async def test_a_large_answer():
    body = BODY[:-3] + b',"parameters":{"binary_data_size":8388608}}]}'
    head = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: %d\r\n" % len(body)
    data = bytes(range(256)) * (8 << 12)
    body += data
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(piece), piece)
        for piece in (body[start : start + 1_000_000] for start in range(0, len(body), 1_000_000))
    )
    for answer in (
        head + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n",
    ):
        async with scripted(answer) as server, transport_to(server.port) as transport:
            for _ in range(2):
                reply, error = await ask(transport)
                assert error is None
                assert reply.outputs[0].data == data
                assert memoryview(reply.outputs[0].data).readonly
            assert server.connections == 1


# Closing


async def test_closing_gives_up_what_is_under_way():
    async with serving(lambda reader, writer: reader.read()) as port:
        transport = HttpTransport(
            parse_url(f"http://127.0.0.1:{port}"), ssl=None, headers={}, admin_headers={}
        )
        sent, connecting = begin(transport), begin(transport)
        asking = asyncio.create_task(transport.server_info(timeout=20))
        await until(lambda: len(transport._connections._open) == 3)
        late = begin(transport)
        await asyncio.sleep(0)
        trimming = transport._connections._trimming
        await transport.aclose()
        assert not transport._connections._open
        assert trimming.cancelled()
        after = begin(transport)
        for future in (sent, connecting, late, after):
            reply, error = await future
            assert reply is None
            assert isinstance(error, asyncio.CancelledError)
        with pytest.raises(ServerError, match="the client was closed"):
            await asking
        with pytest.raises(ServerError, match="the client was closed"):
            await transport.server_info(timeout=20)
        assert not transport._connections._open
        await transport.aclose()


async def test_questions_have_a_timeout():
    """The late answer frees the connection, and is nobody's."""
    go_on = asyncio.Event()

    async def play(writer):
        await go_on.wait()
        writer.write(ANSWER)

    async with scripted(play) as server, transport_to(server.port) as transport:
        with pytest.raises(ServerError) as raised:
            await transport.server_info(timeout=0.05)
        assert raised.value.code == "DEADLINE_EXCEEDED"
        assert not transport._connections._idle
        go_on.set()
        await until(lambda: transport._connections._idle)
        check_is_the_answer(*await ask(transport))
        assert server.connections == 1


def test_an_address_is_one_place():
    assert Address("h", 1) == Address("h", 1, "")
