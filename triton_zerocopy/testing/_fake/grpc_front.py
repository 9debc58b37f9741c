"""The gRPC endpoint."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine, Iterator
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from .grpc_calls import GrpcCalls
from .incidents import Dropped
from .refusals import Refusal
from .service import InferCall, Service

_pb: Any = service_pb2  # generated at import, so type checkers see nothing in it

_SERVICE = "inference.GRPCInferenceService"
_HEADER = "triton-grpc-protocol-"
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Otherwise two servers could share a port, and no one would notice.
    ("grpc.so_reuseport", 0),
)


class GrpcFront:
    """Serves a `Service` over gRPC.

    Args:
        service: What is served.
        address: Where to listen, as gRPC writes it: `127.0.0.1:8001` or `unix:/path`.
    """

    def __init__(self, service: Service, address: str) -> None:
        self._service = service
        self._address = address
        self._calls = GrpcCalls(service)
        self._work: set[asyncio.Task[Any]] = set()
        self._server = grpc.aio.server(options=_OPTIONS)
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                partial(self._handle, name), getattr(_pb, f"{name}Request").FromString, _serialize
            )
            for name in ("ModelInfer", *self._calls.by_name)
        }
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._refuse_stream, _pb.ModelInferRequest.FromString, _serialize
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE, handlers),)
        )

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: The address is taken.
        """
        try:
            self._server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._address}: {error}") from error
        await self._server.start()

    async def _handle(self, method: str, request: Any, context: Any) -> Any:
        service = self._service
        names = request.DESCRIPTOR.fields_by_name
        of_model = next((each for each in ("model_name", "name") if each in names), None)
        model = getattr(request, of_model) if of_model and "Model" in method else ""
        drop = partial(sever, context.peer(), self._address)
        call = InferCall(service.regions.references(), service.incidents.begin(method, model), drop)
        # A client that gives up is only not told: what it asked for goes on.
        work = self._begin(self._answer(method, request, call, context.invocation_metadata()))
        try:
            return await call.course.answer_of(work)
        except asyncio.CancelledError:
            call.is_cancelled = True
            raise
        except (Dropped, Refusal) as problem:
            await _end(context, problem)

    async def _answer(self, method: str, request: Any, call: InferCall, metadata: Any) -> Any:
        course = call.course
        await course.reach("handling", call.drop)
        restriction = self._service.restriction_of(method)
        if restriction is not None:
            header, value = _HEADER + restriction[0], restriction[1]
            if dict(metadata or ()).get(header) != value:
                raise Refusal(
                    "UNAVAILABLE", f"This protocol is restricted, expecting header '{header}'"
                )
        if method == "ModelInfer":
            message = await self._calls.infer(request, call)
        else:
            message = self._calls.by_name[method](request)
            await course.reach("answering", call.drop)
        return message if course.body is None else course.body

    def _begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._work.add(task)

        def ended(task: asyncio.Task[Any]) -> None:
            self._work.discard(task)
            if not task.cancelled():
                task.exception()  # there may be nobody to see it

        task.add_done_callback(ended)
        return task

    async def _refuse_stream(self, _requests: Any, context: Any) -> None:
        course = self._service.incidents.begin("ModelStreamInfer")
        try:
            await course.reach("handling", partial(sever, context.peer(), self._address))
            raise Refusal("UNIMPLEMENTED", "FakeTriton does not play ModelStreamInfer")
        except (Dropped, Refusal) as problem:
            await _end(context, problem)


async def _end(context: Any, problem: Dropped | Refusal) -> None:
    """Answer a call with an error, or not at all."""
    if isinstance(problem, Dropped):
        await asyncio.Event().wait()  # until gRPC notices that the connection is gone
    else:
        await context.abort(getattr(grpc.StatusCode, problem.code), problem.text)


def sever(peer: str, address: str) -> None:
    """Cut the connection of a peer. gRPC has no way to, so its socket is shut down.

    Args:
        peer: Who it is, as gRPC writes it: `ipv4:127.0.0.1:40000`, or `unix:` for all of these.
        address: Where the server listens.
    """
    kind, _, where = unquote(peer).partition(":")
    for connection in _connections():
        if kind == "unix":
            fits = connection.getsockname() == address.removeprefix("unix:")
        elif connection.family == socket.AF_UNIX:
            fits = False
        else:
            host, port = connection.getpeername()[:2]
            # gRPC listens for both kinds of addresses on one socket, and tells them apart.
            fits = where == f"{host.removeprefix('::ffff:')}:{port}"
        if fits:
            connection.shutdown(socket.SHUT_RDWR)


def _connections() -> Iterator[socket.socket]:
    """Yield the connected sockets of this process, as duplicates that are closed again."""
    for entry in os.listdir("/proc/self/fd"):
        try:
            duplicate = os.dup(int(entry))
        except OSError:
            continue  # the one that lists the directory
        try:
            connection = socket.socket(fileno=duplicate)
        except OSError:
            os.close(duplicate)
            continue
        with connection:
            try:
                connection.getpeername()
            except OSError:
                continue  # it listens
            yield connection


def _serialize(message: Any) -> bytes:
    data: bytes = message if isinstance(message, bytes) else message.SerializeToString()
    return data
