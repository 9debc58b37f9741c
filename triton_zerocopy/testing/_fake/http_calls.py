"""The calls of HTTP other than infer: which path is which, and what is answered."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from .cuda import HANDLE_SIZE
from .http_wire import Reply, Request
from .json_values import compact, member, number, parse_json, text
from .refusals import Refusal, invalid
from .regions import Kind, Region
from .service import EXTENSIONS, Service

JSON = "application/json"

# As Triton has them; nothing in a path is decoded.
_SERVER = re.compile(r"/v2(?:/health/(live|ready))?")
_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([0-9]+))?(?:/(infer|ready|config|stats))?")
_ALL_STATISTICS = "/v2/models/stats"
_REPOSITORY = re.compile(r"/v2/repository(?:/([^/]+))?/(index|models/([^/]+)/(load|unload))")
_REGION = re.compile(
    r"/v2/(system|cuda)sharedmemory(?:/region/([^/]+))?/(status|register|unregister)"
)
_OF_MODEL = {
    None: "ModelMetadata",
    "infer": "ModelInfer",
    "ready": "ModelReady",
    "config": "ModelConfig",
    "stats": "ModelStatistics",
}


@dataclass(frozen=True)
class Route:
    """A path that is served.

    Attributes:
        call: The call, by its name in gRPC.
        answer: Answers it; not for ModelInfer.
        verb: The one that is allowed.
        model: The model it is about.
        version: Its version.
        content_type: What errors are marked as, too.
    """

    call: str
    answer: Callable[[Request], Reply] = lambda _: Reply()
    verb: str = "GET"
    model: str = ""
    version: str = ""
    content_type: str | None = JSON


class HttpCalls:
    """Answers calls by asking a `Service`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def route(self, path: str) -> Route | None:
        """Return what a path is, None if it is nothing."""
        if path == _ALL_STATISTICS:
            return Route("ModelStatistics", self._statistics("", ""))
        for pattern, find in (
            (_SERVER, self._of_server),
            (_MODEL, self._of_model),
            (_REPOSITORY, self._of_repository),
            (_REGION, self._of_region),
        ):
            found = pattern.fullmatch(path)
            if found is not None:
                return find(found)
        return None

    def _of_server(self, found: re.Match[str]) -> Route:
        service = self._service
        if found[1] is None:
            facts = {"name": service.name, "version": service.version, "extensions": EXTENSIONS}
            return Route("ServerMetadata", lambda _: _json(facts))

        def health(_: Request) -> Reply:
            service.check_live()
            return Reply()

        return Route(f"Server{found[1].capitalize()}", health, content_type=None)

    def _of_model(self, found: re.Match[str]) -> Route:
        model, version, action = found[1], found[2] or "", found[3]
        call = _OF_MODEL[action]
        service = self._service

        def ready(_: Request) -> Reply:
            if service.is_model_ready(model, version):
                return Reply()
            return error(HTTPStatus.BAD_REQUEST, "Model version not ready", None)

        answers: dict[str, Callable[[Request], Reply]] = {
            "ModelMetadata": lambda _: _json(service.model(model, version).config.metadata()),
            "ModelConfig": lambda _: _json(service.model(model, version).config.to_json()),
            "ModelStatistics": self._statistics(model, version),
            "ModelReady": ready,
        }
        if call == "ModelInfer":
            return Route(call, verb="POST", model=model, version=version, content_type=None)
        plain = call == "ModelReady"
        return Route(call, answers[call], "GET", model, version, None if plain else JSON)

    def _statistics(self, model: str, version: str) -> Callable[[Request], Reply]:
        return lambda _: _json({"model_stats": self._service.statistics(model, version)})

    def _of_repository(self, found: re.Match[str]) -> Route:
        repository, model, action = found[1], found[3] or "", found[4]
        service = self._service

        def index(request: Request) -> Reply:
            ready = bool(request.body) and parse_json(request.body).get("ready") is True
            return _json(service.index(only_ready=ready))

        def control(request: Request) -> Reply:
            if repository:
                raise Refusal("UNIMPLEMENTED", "'repository_name' specification is not supported")
            if request.body and parse_json(request.body).get("parameters"):
                raise Refusal("UNIMPLEMENTED", "FakeTriton does not play parameters of a load")
            (service.load if action == "load" else service.unload)(model)
            return Reply(content_type=JSON)

        if action is None:
            return Route("RepositoryIndex", index, "POST")
        return Route(f"RepositoryModel{action.capitalize()}", control, "POST", model)

    def _of_region(self, found: re.Match[str]) -> Route:
        kind: Kind = "system" if found[1] == "system" else "cuda"
        name, action = found[2] or "", found[3]
        regions = self._service.regions

        def status(_: Request) -> Reply:
            return _json([_described(region) for region in regions.status(name, kind)])

        def register(request: Request) -> Reply:
            regions.check_allowed()
            if not name:
                raise invalid(f"'region name' is necessary to register {kind} shared memory region")
            body = parse_json(request.body)
            if kind == "system":
                regions.register_system(name, *_system_region(body))
            else:
                regions.register_cuda(name, *_cuda_region(body))
            return Reply(content_type=JSON)

        def unregister(_: Request) -> Reply:
            regions.unregister(name, kind)
            return Reply(content_type=JSON)

        answer = {"status": status, "register": register, "unregister": unregister}[action]
        call = f"{kind.capitalize()}SharedMemory{action.capitalize()}"
        return Route(call, answer, "GET" if action == "status" else "POST")


def error(status: HTTPStatus, message: str, content_type: str | None) -> Reply:
    """Return an answer that is an error."""
    return Reply(status, compact({"error": message}), content_type)


def _json(value: object) -> Reply:
    return Reply(body=compact(value), content_type=JSON)


def _described(region: Region) -> dict[str, Any]:
    where = (
        {"key": region.key, "offset": region.offset}
        if region.kind == "system"
        else {"device_id": region.device_id}
    )
    return {"name": region.name, **where, "byte_size": region.byte_size}


def _system_region(body: Any) -> tuple[str, int, int]:
    """Return key, offset and byte size of a body that registers."""
    if "key" not in body:
        raise invalid("Shared memory register request has no 'key' field")
    key = text(body["key"])
    offset = number(body.get("offset", 0))
    if "byte_size" not in body:
        raise invalid("Shared memory register request has no 'byte_size' field")
    return key, offset, number(body["byte_size"])


def _cuda_region(body: Any) -> tuple[bytes, int, int]:
    """Return handle, device id and byte size of a body that registers."""
    if "raw_handle" not in body:
        raise invalid("Shared memory register request has no 'raw_handle' field")
    encoded = text(member(body["raw_handle"], "b64"))
    byte_size = number(member(body, "byte_size"))
    device_id = number(member(body, "device_id"))
    try:
        handle = base64.b64decode(encoded)
    except ValueError:
        handle = b""
    if len(handle) != HANDLE_SIZE:
        raise invalid("'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t")
    return handle, device_id, byte_size
