"""The process of a `FakeTriton`.

    python -m triton_zerocopy.testing._fake ORDERS

ORDERS is JSON; `launching` writes it. The process ends when the other end of its control
connection is closed, so it never outlives the one that started it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from .control import Control, connect
from .cuda import CudaRuntime
from .grpc_front import GrpcFront
from .http_front import HttpFront
from .refusals import Refusal
from .regions import RegionTable
from .repository import Repository
from .service import Service
from .versions import release_of


async def main(orders: dict[str, Any]) -> None:
    """Serve until told to end."""
    release = release_of(orders["version"])
    allowed = orders["allow_client_shm"]
    repository = Repository(
        [Path(each) for each in orders["repositories"]],
        is_explicit=orders["load"] is not None,
    )
    service = Service(
        name=orders["name"],
        version=orders["version"],
        release=release,
        repository=repository,
        regions=RegionTable(
            release,
            CudaRuntime(orders["cuda"]),
            is_allowed=release.client_shm if allowed is None else allowed,
        ),
        restricted={name: (key, value) for name, (key, value) in orders["restricted"].items()},
    )
    control = Control(service, *await connect(orders["control"]))
    grpc_front = GrpcFront(service, orders["grpc_address"])
    http_front = HttpFront(service, orders["http_address"], orders["http_port"])
    for model in repository.in_order() if orders["load"] is None else orders["load"]:
        try:
            repository.load(model)
        except Refusal as refusal:
            control.say(problem="model", model=model, text=refusal.text)
            return
    for front, protocol in ((grpc_front, "grpc"), (http_front, "http")):
        try:
            await front.start()
        except OSError as error:
            control.say(problem="port", protocol=protocol, text=str(error))
            return

    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    control.say(ready=True)
    serving = asyncio.create_task(control.serve())
    waiting = asyncio.create_task(ending.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if ending.is_set():
        sys.stdout.write("Signal received: it ends when all requests have ended\n")
        http_front.stop()
        await service.finish()


def end() -> NoReturn:
    """End without waiting for threads in which models still run."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.dont_write_bytecode = True  # in the directories of models
    try:
        asyncio.run(main(json.loads(sys.argv[1])))
    except Exception:  # noqa: BLE001 # the last words of this process
        traceback.print_exc()
        os._exit(1)
    end()
