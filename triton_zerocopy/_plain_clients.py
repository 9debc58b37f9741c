"""tritonclient's own asyncio clients of a server, with the settings of a `Client`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._errors import InputError
from ._settings import Settings

if TYPE_CHECKING:
    from tritonclient.grpc.aio import InferenceServerClient
    from tritonclient.http.aio import InferenceServerClient as HttpInferenceServerClient


def grpc_client(settings: Settings) -> InferenceServerClient:
    """Make the one for gRPC."""
    from tritonclient.grpc.aio import InferenceServerClient

    from ._transports.grpc import channel_credentials

    credentials = None if settings.ssl is None else channel_credentials(settings.ssl)
    return InferenceServerClient(settings.target.address, creds=credentials)


def http_client(settings: Settings) -> HttpInferenceServerClient:
    """Make the one for HTTP. Raises InputError for a Unix socket."""
    from tritonclient.http.aio import InferenceServerClient

    from ._transports.http import ssl_context

    target, ssl = settings.target, settings.ssl
    if target.path:
        raise InputError("tritonclient speaks no HTTP over Unix sockets; use a host and a port")
    if ssl is None:
        return InferenceServerClient(target.address)
    return InferenceServerClient(target.address, ssl=True, ssl_context=ssl_context(ssl))
