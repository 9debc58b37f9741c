"""The unary calls of gRPC, each from a request message to an answer message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf import json_format
from tritonclient.grpc import service_pb2

from . import grpc_infer
from .refusals import Refusal
from .regions import Kind
from .service import EXTENSIONS, InferCall, Service

_pb: Any = service_pb2  # generated at import, so type checkers see nothing in it


class GrpcCalls:
    """Answers calls by asking a `Service`.

    Attributes:
        by_name: All calls but ModelInfer.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.by_name: dict[str, Callable[[Any], Any]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
            "SystemSharedMemoryRegister": self._register_system,
            "SystemSharedMemoryUnregister": self._unregister_system,
            "SystemSharedMemoryStatus": self._system_status,
            "CudaSharedMemoryRegister": self._register_cuda,
            "CudaSharedMemoryUnregister": self._unregister_cuda,
            "CudaSharedMemoryStatus": self._cuda_status,
        }

    async def infer(self, request: Any, call: InferCall) -> Any:
        """Answer ModelInfer.

        Raises:
            Refusal: It fails.
            Dropped: Nobody is to be answered.
        """
        service = self._service
        if service.is_exiting and service.release.shutdown_text:
            raise Refusal(
                "UNAVAILABLE",
                "GRPC server is shutting down and has stopped accepting new requests.",
            )
        model = service.model(request.model_name, request.model_version)
        if model.config.is_decoupled:
            raise Refusal(
                "UNIMPLEMENTED",
                "ModelInfer RPC doesn't support models with decoupled transaction policy",
            )
        try:
            once = service.release.refuses_repeated_outputs
            grpc_infer.parse(request, model, call, once=once)
            service.check(model, call)
        except Refusal:
            call.references.release()
            raise
        return grpc_infer.form(await service.infer(model, call))

    def _server_live(self, _request: Any) -> Any:
        self._service.check_live()
        return _pb.ServerLiveResponse(live=True)

    def _server_ready(self, _request: Any) -> Any:
        self._service.check_live()
        return _pb.ServerReadyResponse(ready=True)

    def _server_metadata(self, _request: Any) -> Any:
        service = self._service
        return _pb.ServerMetadataResponse(
            name=service.name, version=service.version, extensions=EXTENSIONS
        )

    def _model_ready(self, request: Any) -> Any:
        ready = self._service.is_model_ready(request.name, request.version)
        return _pb.ModelReadyResponse(ready=ready)

    def _model_metadata(self, request: Any) -> Any:
        model = self._service.model(request.name, request.version)
        return _pb.ModelMetadataResponse(**model.config.metadata())

    def _model_config(self, request: Any) -> Any:
        model = self._service.model(request.name, request.version)
        return _pb.ModelConfigResponse(config=model.config.message)

    def _model_statistics(self, request: Any) -> Any:
        entries = self._service.statistics(request.name, request.version)
        return json_format.ParseDict({"model_stats": entries}, _pb.ModelStatisticsResponse())

    def _index(self, request: Any) -> Any:
        _check_repository(request)
        return _pb.RepositoryIndexResponse(models=self._service.index(only_ready=request.ready))

    def _load(self, request: Any) -> Any:
        _check_repository(request)
        if request.parameters:
            raise Refusal("UNIMPLEMENTED", "FakeTriton does not play parameters of a load")
        self._service.load(request.model_name)
        return _pb.RepositoryModelLoadResponse()

    def _unload(self, request: Any) -> Any:
        _check_repository(request)
        self._service.unload(request.model_name)
        return _pb.RepositoryModelUnloadResponse()

    def _register_system(self, request: Any) -> Any:
        self._service.regions.register_system(
            request.name, request.key, request.offset, request.byte_size
        )
        return _pb.SystemSharedMemoryRegisterResponse()

    def _unregister_system(self, request: Any) -> Any:
        self._service.regions.unregister(request.name, "system")
        return _pb.SystemSharedMemoryUnregisterResponse()

    def _system_status(self, request: Any) -> Any:
        return self._status(_pb.SystemSharedMemoryStatusResponse(), request.name, "system")

    def _register_cuda(self, request: Any) -> Any:
        self._service.regions.register_cuda(
            request.name, request.raw_handle, request.device_id, request.byte_size
        )
        return _pb.CudaSharedMemoryRegisterResponse()

    def _unregister_cuda(self, request: Any) -> Any:
        self._service.regions.unregister(request.name, "cuda")
        return _pb.CudaSharedMemoryUnregisterResponse()

    def _cuda_status(self, request: Any) -> Any:
        return self._status(_pb.CudaSharedMemoryStatusResponse(), request.name, "cuda")

    def _status(self, message: Any, name: str, kind: Kind) -> Any:
        for region in self._service.regions.status(name, kind):
            entry = message.regions[region.name]
            entry.name, entry.byte_size = region.name, region.byte_size
            if kind == "cuda":
                entry.device_id = region.device_id
            else:
                entry.key, entry.offset = region.key, region.offset
        return message


def _check_repository(request: Any) -> None:
    if request.repository_name:
        raise Refusal("UNIMPLEMENTED", "'repository_name' specification is not supported")
