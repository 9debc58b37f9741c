"""The HTTP endpoint."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Callable
from http import HTTPStatus

from . import http_infer
from .http_calls import JSON, HttpCalls, Route, error
from .http_wire import LONGEST_HEAD, BadRequest, Reply, Request, read_request
from .incidents import Course, Dropped
from .refusals import Refusal
from .service import InferCall, Service


class HttpFront:
    """Serves a `Service` over HTTP.

    Args:
        service: What is served.
        address: Where to listen: `127.0.0.1` or `unix:/path`.
        port: The port; of no meaning for a Unix socket.
    """

    def __init__(self, service: Service, address: str, port: int) -> None:
        self._service = service
        self._address = address
        self._port = port
        self._calls = HttpCalls(service)
        self._work: set[asyncio.Task[Reply]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: The address is taken.
        """
        if self._address.startswith("unix:"):
            path = self._address.removeprefix("unix:")
            self._server = await asyncio.start_unix_server(self._serve, path, limit=LONGEST_HEAD)
        else:
            self._server = await asyncio.start_server(
                self._serve, self._address, self._port, limit=LONGEST_HEAD
            )

    def stop(self) -> None:
        """Listen no more; what is connected stays so."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await read_request(reader, writer)) is not None:
                # The connection is not read meanwhile. A client that leaves is not noticed, and
                # cancels nothing.
                reply = await self._answer(request, writer)
                if writer.is_closing():
                    return
                writer.write(reply.serialize(request))
                await writer.drain()
                if not request.is_kept:
                    return
        except BadRequest as problem:
            sys.stderr.write(f"HTTP: {problem}\n")
            sys.stderr.flush()
        except (Dropped, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> Reply:
        route = self._calls.route(request.path.partition("?")[0])
        if route is None:
            return error(HTTPStatus.NOT_FOUND, "Not Found", None)
        course = self._service.incidents.begin(route.call, route.model)
        work = asyncio.create_task(
            self._answer_route(request, route, course, writer.transport.abort)
        )
        self._work.add(work)
        work.add_done_callback(self._forget)
        try:
            return await course.answer_of(work)
        except Refusal as refusal:
            return error(refusal.http_status, refusal.text, None)

    def _forget(self, work: asyncio.Task[Reply]) -> None:
        self._work.discard(work)
        if not work.cancelled():
            work.exception()  # there may be nobody to see it

    async def _answer_route(
        self, request: Request, route: Route, course: Course, drop: Callable[[], None]
    ) -> Reply:
        try:
            await course.reach("handling", drop)
            restriction = self._service.restriction_of(route.call)
            if (
                restriction is not None
                and request.headers.get(restriction[0].lower()) != (restriction[1])
            ):
                text = f"This API is restricted, expecting header '{restriction[0]}'"
                return error(HTTPStatus.FORBIDDEN, text, None)
            if request.method != route.verb:
                text = "Method Not Allowed"
                return error(HTTPStatus.METHOD_NOT_ALLOWED, text, route.content_type)
            if route.call == "ModelInfer":
                call = InferCall(self._service.regions.references(), course, drop)
                return await self._infer(request, route, call)
            reply = route.answer(request)
            await course.reach("answering", drop)
        except Refusal as refusal:
            return error(refusal.http_status, refusal.text, route.content_type)
        except Dropped:
            raise
        except Exception as problem:  # noqa: BLE001 # a body of quite another form than expected
            traceback.print_exc(file=sys.stderr)
            return error(HTTPStatus.INTERNAL_SERVER_ERROR, repr(problem), route.content_type)
        return _replaced(reply, course)

    async def _infer(self, request: Request, route: Route, call: InferCall) -> Reply:
        service = self._service
        model = service.model(route.model, route.version)
        if model.config.is_decoupled:
            raise Refusal(
                "UNIMPLEMENTED",
                "HTTP end point doesn't support models with decoupled transaction policy",
            )
        try:
            http_infer.parse(
                request.body,
                request.headers.get(http_infer.HEADER_LENGTH),
                model,
                call,
                once=service.release.refuses_repeated_outputs,
            )
            service.check(model, call)
        except Refusal as refusal:
            call.references.release()
            return error(refusal.http_status, refusal.text, JSON)
        return _replaced(http_infer.form(await service.infer(model, call)), call.course)


def _replaced(reply: Reply, course: Course) -> Reply:
    return reply if course.body is None else Reply(body=course.body, content_type=JSON)
