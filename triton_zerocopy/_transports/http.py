"""HTTP, over connections of our own: requests made ahead, and nothing between them and the loop."""

from __future__ import annotations

import base64
import ssl as tls
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from .._errors import InputError
from .._http.exchange import Response
from .._http.pool import Address, Connections
from .._http.tls import client_context
from .._specs import ModelSpec
from .._urls import SslOptions, Target
from . import http_replies as replies
from .base import (
    HANDLE_BYTES,
    CallOptions,
    Done,
    InferRequest,
    ServerError,
    ServerInfo,
    some,
)
from .http_requests import Prepared, Requests, compose, model_path, segment


def ssl_context(ssl: SslOptions) -> tls.SSLContext:
    """Read the certificates of ``ssl``. Blocking, small files."""
    return client_context(
        ssl.read(ssl.root_certificates),
        ssl.read(ssl.private_key),
        ssl.read(ssl.certificate_chain),
    )


@contextmanager
def _readable() -> Iterator[None]:
    """Turn what an answer of another form than expected raises into ServerError."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise ServerError("UNKNOWN", f"unreadable answer: {type(error).__name__}") from error


class HttpTransport:
    """Connections to one server; they belong to the event loop this is made in.

    Args:
        target: where the server is.
        ssl: how to encrypt, for a secure target.
        headers: sent with every call.
        admin_headers: sent with calls about shared memory besides ``headers``.
    """

    gathers = False

    def __init__(
        self,
        target: Target,
        *,
        ssl: SslOptions | None,
        headers: Mapping[str, str],
        admin_headers: Mapping[str, str],
    ) -> None:
        address = Address(target.host, target.port, target.path)
        self._connections = Connections(address, None if ssl is None else ssl_context(ssl))
        host = target.address if target.host else "localhost"
        self._requests = Requests(host, headers)
        self._admin_requests = Requests(host, {**headers, **admin_headers})
        self._reader = replies.InferReader()
        self._plain = replies.PlainReader()

    # Inference

    def prepare(self, request: InferRequest) -> Prepared:
        return self._requests.prepare(request)

    def compose(
        self, prepared: object, payloads: Sequence[memoryview], options: CallOptions
    ) -> bytes:
        assert isinstance(prepared, Prepared)
        return compose(prepared, payloads, options)

    def infer(self, message: object, done: Done) -> None:
        assert type(message) is bytes
        self._connections.ask(message, done, self._reader)

    # Control plane

    async def server_info(self, *, timeout: float | None) -> ServerInfo:
        found = await self._get("/v2", timeout)
        with _readable():
            name, version = replies.text(found["name"]), replies.text(found["version"])
            return ServerInfo(name, version, tuple(found["extensions"]))

    async def is_ready(self, *, timeout: float | None) -> bool:
        response = await self._fetch(self._requests.get("/v2/health/ready"), timeout)
        return response.status == 200

    async def model_spec(self, name: str, version: str, *, timeout: float | None) -> ModelSpec:
        path = model_path(name, version)
        metadata = await self._get(path, timeout)
        config = await self._get(f"{path}/config", timeout)
        with _readable():
            return replies.model_spec(name, version, metadata, config)

    async def register_system(
        self, name: str, key: str, byte_size: int, *, timeout: float | None
    ) -> None:
        # Offset 0 always: servers before 2.60 add another offset twice.
        document = {"key": key, "offset": 0, "byte_size": byte_size}
        await self._administer("system", some(name), "register", document, timeout)

    async def unregister_system(self, name: str, *, timeout: float | None) -> None:
        await self._administer("system", some(name), "unregister", {}, timeout)

    async def has_system(self, name: str, *, timeout: float | None) -> bool:
        return await self._is_known("system", name, timeout)

    async def list_system(self, *, timeout: float | None) -> Sequence[str]:
        return await self._list("system", timeout)

    async def register_cuda(
        self, name: str, raw_handle: bytes, device_id: int, byte_size: int, *, timeout: float | None
    ) -> None:
        if len(raw_handle) != HANDLE_BYTES:
            raise ValueError(f"a CUDA IPC handle has {HANDLE_BYTES} bytes, not {len(raw_handle)}")
        document = {
            "raw_handle": {"b64": base64.b64encode(raw_handle).decode("ascii")},
            "device_id": device_id,
            "byte_size": byte_size,
        }
        await self._administer("cuda", some(name), "register", document, timeout)

    async def unregister_cuda(self, name: str, *, timeout: float | None) -> None:
        await self._administer("cuda", some(name), "unregister", {}, timeout)

    async def has_cuda(self, name: str, *, timeout: float | None) -> bool:
        return await self._is_known("cuda", name, timeout)

    async def list_cuda(self, *, timeout: float | None) -> Sequence[str]:
        return await self._list("cuda", timeout)

    async def aclose(self) -> None:
        await self._connections.aclose()

    async def _fetch(self, message: bytes, timeout: float | None) -> Response:
        try:
            return await self._connections.fetch(message, self._plain, timeout=timeout)
        except TimeoutError as error:
            raise ServerError("DEADLINE_EXCEEDED", f"no answer within {timeout} seconds") from error

    async def _get(self, path: str, timeout: float | None) -> Any:
        return replies.read_json(await self._fetch(self._requests.get(path), timeout))

    async def _administer(
        self,
        kind: str,
        name: str,
        action: str,
        document: Mapping[str, Any],
        timeout: float | None,
    ) -> None:
        path = f"/v2/{kind}sharedmemory/region/{segment(name)}/{action}"
        response = await self._fetch(self._admin_requests.post(path, document), timeout)
        if response.status != 200:
            raise replies.server_error(response)

    async def _status(self, path: str, timeout: float | None) -> Any:
        return replies.read_json(await self._fetch(self._admin_requests.get(path), timeout))

    async def _is_known(self, kind: str, name: str, timeout: float | None) -> bool:
        try:
            await self._status(f"/v2/{kind}sharedmemory/region/{segment(name)}/status", timeout)
        except ServerError as error:
            if error.code == "NOT_FOUND":
                return False
            raise
        return True

    async def _list(self, kind: str, timeout: float | None) -> Sequence[str]:
        found = await self._status(f"/v2/{kind}sharedmemory/status", timeout)
        with _readable():
            return tuple(replies.text(each["name"]) for each in found)
