"""A web service in front of Triton: one client for each worker, shared by all its requests.

    TRITON_URL=localhost:8001 uvicorn examples.fastapi_app:app

or, with a Triton of its own unless TRITON_URL is set:

    python examples/fastapi_app.py

Then:

    curl -X POST localhost:8000/norm -H 'content-type: application/json' -d '[[3, 4, 0]]'
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse

import triton_zerocopy as tz

# What to tell whoever called. The rest is a fault of this service: 500.
STATUS = {
    tz.InputError: 422,  # the input does not fit the model; nothing was sent
    tz.PoolExhausted: 503,  # too many callers wait already
    tz.ServerUnavailable: 503,
    tz.InferTimeout: 504,
}


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with tz.Client(os.environ.get("TRITON_URL", "localhost:8001")) as client:
        await client.wait_ready(timeout=60)
        timeout = float(os.environ.get("TRITON_TIMEOUT", "1.0"))
        # Four requests are with the server, eight more wait; whoever comes then is sent away.
        async with client.model("norm", slots=4, max_waiting=8, timeout=timeout) as model:
            yield {"model": model}


app = FastAPI(lifespan=lifespan)


def get_model(request: Request) -> tz.Model:
    model: tz.Model = request.state.model
    return model


Norm = Annotated[tz.Model, Depends(get_model)]


async def refuse(_: Request, error: Exception) -> JSONResponse:
    status = next(status for kind, status in STATUS.items() if isinstance(error, kind))
    return JSONResponse({"detail": str(error)}, status)


for kind in STATUS:
    app.add_exception_handler(kind, refuse)


@app.post("/norm")
async def norm(vectors: list[list[float]], model: Norm) -> list[float]:
    result = await model.infer({"VECTOR": vectors})
    norms: list[float] = result["NORM"].ravel().tolist()
    return norms


@app.get("/health")
async def health(model: Norm) -> dict[str, int]:
    return dataclasses.asdict(model.statistics())


if __name__ == "__main__":
    from batching import MODEL

    from triton_zerocopy.testing import TritonServer

    with contextlib.ExitStack() as stack:
        if "TRITON_URL" not in os.environ:
            server = stack.enter_context(TritonServer(models={"norm": MODEL}))
            os.environ["TRITON_URL"] = server.grpc_url
        uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
