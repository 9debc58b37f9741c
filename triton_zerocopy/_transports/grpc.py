"""gRPC, over the generated stubs of tritonclient and grpc.aio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc

from .._specs import ModelSpec
from .._urls import SslOptions, Target
from . import messages
from .base import (
    HANDLE_BYTES,
    CallOptions,
    Done,
    InferReply,
    InferRequest,
    ServerError,
    ServerInfo,
    some,
)
from .grpc_flights import Flights, server_error

_CHANNEL_OPTIONS: Final = (
    ("grpc.max_send_message_length", messages.MAX_MESSAGE),
    ("grpc.max_receive_message_length", messages.MAX_MESSAGE),
    # gRPC's defaults (1 s, growing to 120 s) leave a restarted server unused for half a minute.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # With gRPC's jitter of 20 % a server that is back is in use within 0.6 s.
    ("grpc.max_reconnect_backoff_ms", 500),
    # In spite of its name, how long one attempt to connect may take at least.
    ("grpc.min_reconnect_backoff_ms", 5000),
    # Nothing that gRPC can do besides: retries, statistics, compression, limits of sizes. Each is a
    # step of every call (gRPC core, grpc/impl/channel_arg_names.h).
    ("grpc.minimal_stack", 1),
    # That calls end when their time is up is to be asked for then; 1.81 to 1.85 do so anyway.
    ("grpc.enable_deadline_checking", 1),
    # Each client owns its connection, instead of sharing it through a process-wide pool.
    ("grpc.use_local_subchannel_pool", 1),
)
_INFER_METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
_SMALL_ANSWER: Final = 1024  # bytes
_REMEMBERED: Final = 256

_pb: Any = service_pb2  # generated at import, so type checkers see nothing in it

Result = TypeVar("Result")


class GrpcTransport:
    """A channel to one server; it belongs to the event loop it is made in.

    Args:
        target: where the server is.
        ssl: how to encrypt, for a secure target.
        headers: sent with every call.
        admin_headers: sent with calls about shared memory besides ``headers``.
    """

    gathers = True  # but for a call that is alone

    def __init__(
        self,
        target: Target,
        *,
        ssl: SslOptions | None,
        headers: Mapping[str, str],
        admin_headers: Mapping[str, str],
    ) -> None:
        if ssl is None:
            self._channel = grpc.aio.insecure_channel(target.address, options=_CHANNEL_OPTIONS)
        else:
            credentials = channel_credentials(ssl)
            self._channel = grpc.aio.secure_channel(
                target.address, credentials, options=_CHANNEL_OPTIONS
            )
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._headers = tuple(headers.items()) or None
        self._admin_headers = (*headers.items(), *admin_headers.items()) or None
        # Messages are serialised already, and answers are parsed here.
        self._flights = Flights(self._channel, _INFER_METHOD, tuple(headers.items()), self._parse)
        self._replies: dict[bytes, InferReply] = {}

    # Inference

    def prepare(self, request: InferRequest) -> bytes:
        return messages.prepare(request)

    def compose(
        self, prepared: object, payloads: Sequence[memoryview], options: CallOptions
    ) -> bytes:
        assert isinstance(prepared, bytes)
        return messages.compose(prepared, payloads, options)

    def infer(self, message: object, done: Done) -> None:
        self._flights.start(message, done)

    def _parse(self, answer: bytes) -> InferReply:
        """Parse an answer; one without tensor bytes mostly is the same as the one before."""
        reply = self._replies.get(answer)
        if reply is None:
            reply = messages.parse_reply(answer)
            if len(answer) <= _SMALL_ANSWER and not any(output.data for output in reply.outputs):
                if len(self._replies) >= _REMEMBERED:
                    self._replies.clear()
                self._replies[answer] = reply
        return reply

    # Control plane

    async def server_info(self, *, timeout: float | None) -> ServerInfo:
        reply = await self._call(self._stub.ServerMetadata, _pb.ServerMetadataRequest(), timeout)
        return ServerInfo(reply.name, reply.version, tuple(reply.extensions))

    async def is_ready(self, *, timeout: float | None) -> bool:
        reply = await self._call(self._stub.ServerReady, _pb.ServerReadyRequest(), timeout)
        return bool(reply.ready)

    async def model_spec(self, name: str, version: str, *, timeout: float | None) -> ModelSpec:
        metadata = await self._call(
            self._stub.ModelMetadata,
            _pb.ModelMetadataRequest(name=name, version=version),
            timeout,
        )
        answer = await self._call(
            self._stub.ModelConfig,
            _pb.ModelConfigRequest(name=name, version=version),
            timeout,
        )
        return messages.model_spec(name, version, metadata, answer.config)

    async def register_system(
        self, name: str, key: str, byte_size: int, *, timeout: float | None
    ) -> None:
        # Offset 0 always: servers before 2.60 add another offset twice.
        request = _pb.SystemSharedMemoryRegisterRequest(
            name=name, key=key, offset=0, byte_size=byte_size
        )
        await self._administer(self._stub.SystemSharedMemoryRegister, request, timeout)

    async def unregister_system(self, name: str, *, timeout: float | None) -> None:
        request = _pb.SystemSharedMemoryUnregisterRequest(name=some(name))
        await self._administer(self._stub.SystemSharedMemoryUnregister, request, timeout)

    async def has_system(self, name: str, *, timeout: float | None) -> bool:
        request = _pb.SystemSharedMemoryStatusRequest(name=name)
        return await self._is_known(self._stub.SystemSharedMemoryStatus, request, timeout)

    async def list_system(self, *, timeout: float | None) -> Sequence[str]:
        request = _pb.SystemSharedMemoryStatusRequest()
        reply = await self._administer(self._stub.SystemSharedMemoryStatus, request, timeout)
        return tuple(reply.regions)

    async def register_cuda(
        self, name: str, raw_handle: bytes, device_id: int, byte_size: int, *, timeout: float | None
    ) -> None:
        # The server takes a handle of any length and reads 64 bytes of it.
        if len(raw_handle) != HANDLE_BYTES:
            raise ValueError(f"a CUDA IPC handle has {HANDLE_BYTES} bytes, not {len(raw_handle)}")
        request = _pb.CudaSharedMemoryRegisterRequest(
            name=name, raw_handle=raw_handle, device_id=device_id, byte_size=byte_size
        )
        await self._administer(self._stub.CudaSharedMemoryRegister, request, timeout)

    async def unregister_cuda(self, name: str, *, timeout: float | None) -> None:
        request = _pb.CudaSharedMemoryUnregisterRequest(name=some(name))
        await self._administer(self._stub.CudaSharedMemoryUnregister, request, timeout)

    async def has_cuda(self, name: str, *, timeout: float | None) -> bool:
        request = _pb.CudaSharedMemoryStatusRequest(name=name)
        return await self._is_known(self._stub.CudaSharedMemoryStatus, request, timeout)

    async def list_cuda(self, *, timeout: float | None) -> Sequence[str]:
        request = _pb.CudaSharedMemoryStatusRequest()
        reply = await self._administer(self._stub.CudaSharedMemoryStatus, request, timeout)
        return tuple(reply.regions)

    async def aclose(self) -> None:
        self._flights.cancel()
        await self._channel.close()

    async def _call(
        self, method: Callable[..., Awaitable[Any]], request: object, timeout: float | None
    ) -> Any:
        return await _translated(method(request, timeout=timeout, metadata=self._headers))

    async def _administer(
        self, method: Callable[..., Awaitable[Any]], request: object, timeout: float | None
    ) -> Any:
        return await _translated(method(request, timeout=timeout, metadata=self._admin_headers))

    async def _is_known(
        self, method: Callable[..., Awaitable[Any]], request: object, timeout: float | None
    ) -> bool:
        try:
            await self._administer(method, request, timeout)
        except ServerError as error:
            if error.code == "NOT_FOUND":
                return False
            raise
        return True


def channel_credentials(ssl: SslOptions) -> grpc.ChannelCredentials:
    """Read the certificates of ``ssl``. Blocking, small files."""
    return grpc.ssl_channel_credentials(
        root_certificates=ssl.read(ssl.root_certificates),
        private_key=ssl.read(ssl.private_key),
        certificate_chain=ssl.read(ssl.certificate_chain),
    )


async def _translated(call: Awaitable[Result]) -> Result:
    try:
        answer = await call
    except grpc.RpcError as error:
        raise server_error(error) from error
    if answer is None:  # what grpc.aio makes of a message that it cannot parse
        raise ServerError("DATA_LOSS", "unreadable answer")
    return answer
